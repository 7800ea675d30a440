"""Looks that several threads want at one moment are taken once, and none of them is older than its question.

A wave of migrations lists the same servers and volumes again and again, each for itself. Whoever asks while such a look
is under way waits for it to end, for it may have begun too early; then one of those who wait looks for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Together:
    """Shared by all threads of one connection. What is seen is shared too: nobody may change it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun: dict[str, int] = {}
        self._under_way: set[str] = set()
        self._seen: dict[str, tuple[int, Any]] = {}
        self._waiting: dict[str, int] = {}

    def look(self, what: str, make: Callable[[], T]) -> T:
        """What ``make`` has seen, here or in another thread, in a look that began after this call. Raises what it
        raises; those who waited for it then look for themselves.
        """
        with self._changed:
            needed = self._begun.get(what, 0) + 1
            self._waiting[what] = self._waiting.get(what, 0) + 1
            try:
                while what in self._under_way and not self._known(what, needed):
                    self._changed.wait()
                if self._known(what, needed):
                    found: T = self._seen[what][1]
                    return found
                self._begun[what] = number = self._begun.get(what, 0) + 1
                self._under_way.add(what)
            finally:
                self._waiting[what] -= 1
                if not self._waiting[what]:
                    self._seen.pop(what, None)
        try:
            made = make()
            with self._changed:
                if self._waiting[what]:
                    self._seen[what] = (number, made)
            return made
        finally:
            with self._changed:
                self._under_way.discard(what)
                self._changed.notify_all()

    def _known(self, what: str, needed: int) -> bool:
        return what in self._seen and self._seen[what][0] >= needed
