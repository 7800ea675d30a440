"""A change of the disk by the guest, on its way to both sides, and what a connection needs of a protection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from whimbrel.errors import WhimbrelError

Done = Callable[[WhimbrelError | None], None]
"""Called once from a thread of the protection: the change may be acknowledged, or has failed. Must be quick."""

ChangeKind = Literal["write", "zero", "trim"]


def _nobody(_error: WhimbrelError | None) -> None:
    """Nobody waits."""


@dataclass(slots=True)
class Change:
    """``data`` is a write's payload, which nobody may touch until ``done`` was called."""

    kind: ChangeKind
    offset: int
    length: int
    data: memoryview | None = None
    may_punch: bool = True
    done: Done = _nobody
    came_at: float = field(default_factory=time.monotonic)

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.length


class Protection(Protocol):
    """Carries changes out at the target and sees to the shadow. Thread-safe."""

    def submit(self, change: Change) -> None:
        """Take a change whose chunks are local, or covered whole; changes are carried out in this order."""
        ...

    def holds(self, first: int, last: int) -> bool:
        """Whether chunks of a range may not be read yet: after a crash, both sides must be made equal there first."""
        ...

    def when_settled(self, go: Done) -> None:
        """Call ``go`` once ``holds`` is false everywhere: at once, or later from another thread."""
        ...
