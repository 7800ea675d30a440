"""The operator's command line: plans are read here, everything else is asked of Temporal.

One command per file; what they share is beside them. ``docs/operator.md`` tells their use, JSON and exit codes.
"""
