"""The lock of a server whose images are imported is set again after an act of ours, also after one that failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from drivers.openstack.fence import FENCED, Fence
from whimbrel.errors import Unavailable

MIGRATION = "0123456789"


class Locking:
    """In the place of ``Locks``: what was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def lock(self, server: Any, migration: str) -> None:
        self.done.append(f"lock {server.id} {migration}")

    def unlock(self, server: Any, migration: str) -> None:
        self.done.append(f"unlock {server.id} {migration}")


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_locked_again_whatever_became_of_the_act(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    locks = Locking()
    monkeypatch.setattr("drivers.openstack.fence.Locks", lambda _connection: locks)
    server = SimpleNamespace(id="s1", metadata={FENCED: MIGRATION}, is_locked=True, locked_reason=None)
    fence = Fence(SimpleNamespace())  # type: ignore[arg-type]

    def act() -> None:
        with fence.passed(server):
            assert not server.is_locked
            locks.done.append("act")
            if fails:
                raise Unavailable("Nova is away")

    if fails:
        with pytest.raises(Unavailable):
            act()
    else:
        act()
    assert locks.done == [f"unlock s1 {MIGRATION}", "act", f"lock s1 {MIGRATION}"]
    assert server.is_locked
