"""What a process of ours needs around Temporal: settings, connection, logs, error translation, dev server, exit.

The only part of ``whimbrel`` (beside ``contracts``) that may import ``temporalio``.
"""
