"""The operator's files: clouds and settings (``whimbrel.yaml``), credentials by reference, plans.

Everything wrong with a file is told at once, one line each, with the line it stands on; nothing is touched before.
"""
