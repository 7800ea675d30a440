"""What can be learnt from and asked of a running guest without credentials for it."""

from __future__ import annotations

from typing import Protocol

from whimbrel.model.endpoint import Frozen


class GuestFacts(Frozen):
    """What an agent in the guest tells; everything unknown where there is none."""

    agent: bool = False
    hostname: str | None = None
    os: str | None = None
    addresses: tuple[str, ...] = ()


class GuestPort(Protocol):
    """Every method may raise Unavailable, NotFound."""

    def facts(self, ref: str) -> GuestFacts:
        """Ask the agent, if one answers within a second or two."""
        ...

    def quiesce(self, ref: str) -> bool:
        """Freeze the guest's file systems through its agent; False when there is no agent to do it."""
        ...

    def thaw(self, ref: str) -> None:
        """Undo ``quiesce``; a guest that is not frozen is fine."""
        ...

    def console_tail(self, ref: str, max_bytes: int = 4096) -> str | None:
        """The last output on the VM's logged console; None when the cloud keeps none."""
        ...
