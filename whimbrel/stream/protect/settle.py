"""After a crash: make target and shadow alike in the chunks where they may differ, before anybody reads those.

The process died: the target has all that was acknowledged, and perhaps a change that was not, which a guest that
starts again would find there. It is copied to the shadow, so that what the guest builds on is there as well.

The host crashed: the target may have lost acknowledged writes that were never flushed; the shadow has them all. Such
chunks are copied from the shadow, so nothing acknowledged is lost at either side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from whimbrel.errors import WhimbrelError
from whimbrel.stream.chunkmap import Run
from whimbrel.stream.protect.change import Change, Done
from whimbrel.stream.protect.intent import Intent
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped
from whimbrel.stream.store import Store

TARGET_PAUSE_S = 0.5


class Settling:
    """``run`` once, in a thread that may wait for the shadow; the rest for any thread."""

    def __init__(
        self, store: Store, intent: Intent, shadow: Shadow, stop: threading.Event, also: Iterable[Run] = ()
    ) -> None:
        """``also``: more chunks that may not be read before ``run`` has ended."""
        self._store = store
        self._intent = intent
        self._shadow = shadow
        self._stop = stop
        runs = intent.marked() if intent.host_crashed else intent.flying()
        self._open = {chunk for first, last in (*runs, *also) for chunk in range(first, last)}
        self._lock = threading.Lock()
        self._waiting: list[Done] = []

    @property
    def reads_shadow(self) -> bool:
        """Whether the shadow has acknowledged writes that a crash of the host may have taken from the target."""
        return self._intent.host_crashed

    @property
    def open_chunks(self) -> int:
        """Chunks that are not alike for sure yet."""
        return len(self._open)

    def holds(self, first: int, last: int) -> bool:
        """See Protection."""
        return bool(self._open) and not self._open.isdisjoint(range(first, last))

    def when_settled(self, go: Done) -> None:
        """See Protection."""
        with self._lock:
            if self._open:
                self._waiting.append(go)
                return
        go(None)

    def run(self) -> None:
        """Settle. Raises Stopped."""
        if self._open:
            self._make_alike()
            self._persist(self._store.flush)
        if self._open or self._intent.host_crashed:
            self._intent.settled()
        with self._lock:
            self._open = set()
            waiting, self._waiting = self._waiting, []
        for go in waiting:
            go(None)

    def _make_alike(self) -> None:
        if self._intent.host_crashed:
            # What an unfinished batch left in the shadow's cache could vanish there after it was copied here.
            self._shadow.flush()
        for chunk in sorted(self._open):
            self._copy(chunk)

    def _copy(self, chunk: int) -> None:
        store = self._store
        offset = chunk * store.chunk_bytes
        length = min(store.chunk_bytes, store.size_bytes - offset)
        buffer = memoryview(bytearray(length))
        if self._intent.host_crashed:
            self._shadow.read(offset, buffer)
            self._persist(lambda: store.write(offset, buffer))
        elif store.map.is_local(chunk, chunk + 1):
            store.read(offset, buffer)
            self._shadow.apply([Change("write", offset, length, buffer)])
        # A missing chunk was never changed at the target, and the shadow comes after the target.

    def _persist(self, act: Callable[[], object]) -> None:
        """Do something at the target, again while it cannot (full)."""
        while True:
            try:
                act()
            except WhimbrelError:
                if self._stop.wait(TARGET_PAUSE_S):
                    raise Stopped from None
            else:
                return
