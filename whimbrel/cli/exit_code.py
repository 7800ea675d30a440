"""What a command's exit code means; scripts rely on it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Documented in ``docs/operator.md``; numbers never change their meaning."""

    OK = 0
    FAILED = 1
    """It failed, was refused, or the migration was rolled back."""
    INVALID = 2
    """Wrong usage, or a plan or ``whimbrel.yaml`` that cannot be used as written; nothing was touched."""
    NOT_FOUND = 3
    """No such migration, VM or cloud."""
    UNREACHABLE = 4
    """Temporal does not answer."""
    BLOCKED = 5
    """A precheck found a reason that forbids the migration."""
    WAITING = 6
    """The migration waits for the operator."""
    INTERRUPTED = 130
    """Ctrl-C; migrations go on."""
