"""Finds the boot set beside a running server, in a thread of its own.

What it reads of the disk it lands in the target, as the background does: it is needed there anyway, and the guest's
kernel will ask for the same inodes and directories. It keeps little in flight, so that misses do not wait behind it.
That the file system cannot be read is no fault: the server then predicts from the guest's accesses alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.ports.block import BlockDevice, BlockLane
from whimbrel.stream.prefetch.bootset.filesystem import Piece
from whimbrel.stream.prefetch.bootset.gather import chunks_of, gather
from whimbrel.stream.prefetch.bootset.predictor import BootSet
from whimbrel.stream.prefetch.bootset.view import Spent, View
from whimbrel.stream.source import Source, Stopped
from whimbrel.stream.store import Claim, Store

BUDGET_BYTES: Final = 128 << 20
"""Of the disk to look at; as much memory is used while looking."""
IN_FLIGHT_BYTES: Final = 256 << 10
WAITING_S: Final = 0.2

log = logging.getLogger(__name__)


class Scout:
    """``start`` and ``stop`` once each; ``pass_through`` waits until so many bytes may go, False at the end."""

    def __init__(
        self,
        store: Store,
        source: Source,
        found: BootSet,
        *,
        paused: Callable[[], bool] = lambda: False,
        needed: Callable[[], bool] = lambda: True,
        pass_through: Callable[[int], bool] = lambda _count: True,
        landed: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._store = store
        self._source = source
        self._found = found
        self._paused = paused
        self._needed = needed
        self._pass_through = pass_through
        self._landed = landed
        self._lane: BlockLane | None = None
        self._device: BlockDevice | None = None
        self._stopping = threading.Event()
        self._state = "waiting"
        self._took_s = 0.0
        self._files = 0
        self._looked_bytes = 0
        self._thread = threading.Thread(target=self._run, name="scout", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the source was stopped. Waits for the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def report(self) -> dict[str, object]:
        """For the status."""
        return {
            "state": self._state,
            "files": self._files,
            "chunks": self._found.chunks,
            "looked_at_bytes": self._looked_bytes,
            "took_s": round(self._took_s, 3),
        }

    def _run(self) -> None:
        while self._paused() and not self._stopping.wait(WAITING_S):
            pass
        if self._stopping.is_set():
            return
        if not self._needed() or not self._store.map.missing_chunks:
            self._state = "not needed"
            return
        began = time.monotonic()
        self._state = "looking"
        view = View(self._fetch, self._store.size_bytes, self._store.chunk_bytes, BUDGET_BYTES)
        try:
            systems = gather(view, self._emit)
            self._state = "found" if self._files else "no system found" if systems else "no file system found"
        except Stopped:
            self._state = "stopped"
        except Spent:
            self._state = "found in part"
        except Exception as error:  # noqa: BLE001 - the disk is somebody else's: whatever is on it must not hinder the guest
            log.warning("bootset.failed", extra={"error": repr(error)})
            self._state = f"failed: {error!r}"
        finally:
            self._took_s = time.monotonic() - began
            if self._lane is not None:
                self._lane.close()

    def _emit(self, path: str, pieces: list[Piece]) -> None:
        self._files += bool(path)
        self._found.add(chunks_of(pieces, self._store.chunk_bytes))

    def _fetch(self, chunks: list[int]) -> dict[int, bytes]:
        """Bring chunks and look at them. Raises Stopped, Spent if one cannot come."""
        self._looked_bytes += len(chunks) * self._store.chunk_bytes
        found: dict[int, bytes] = {}
        left, elsewhere = deque(chunks), list[int]()
        while left:
            flying: dict[int, tuple[Claim, memoryview]] = {}
            try:
                self._fly(left, flying, found, elsewhere)
            except WhimbrelError as error:
                left.extend(claim.first for claim, _ in flying.values())
                self._lane = None
                self._source.failed(self._device, error)
            finally:
                for claim, _ in flying.values():
                    self._store.abandon(claim)
        for chunk in elsewhere:
            found[chunk] = self._local(chunk)
        return found

    def _fly(
        self,
        left: deque[int],
        flying: dict[int, tuple[Claim, memoryview]],
        found: dict[int, bytes],
        elsewhere: list[int],
    ) -> None:
        """Bring what nobody else brings; the rest is told in ``elsewhere``."""
        if self._lane is None:
            self._lane, self._device = self._source.lane()
        while left or flying:
            while left and len(flying) * self._store.chunk_bytes < IN_FLIGHT_BYTES:
                claim = self._store.claim(left[0], left[0] + 1)
                if claim is None:
                    elsewhere.append(left.popleft())
                    continue
                start, length = self._store.byte_range(claim)
                buffer = memoryview(bytearray(length))
                try:
                    if not self._pass_through(length):
                        raise Stopped
                    flying[self._lane.submit_read(start, buffer)] = claim, buffer
                except BaseException:
                    self._store.abandon(claim)
                    raise
                left.popleft()
            if flying:
                claim, buffer = flying.pop(self._lane.reap().cookie)
                self._source.worked()
                found[claim.first] = bytes(buffer)
                with contextlib.suppress(WhimbrelError):  # a full target is the background's to tell
                    self._landed(self._store.land(claim, buffer))

    def _local(self, chunk: int) -> bytes:
        """A chunk that is there, or that somebody else is bringing."""
        arrived = threading.Event()
        failed: list[WhimbrelError] = []

        def arrival(error: WhimbrelError | None) -> None:
            failed.extend([error] if error is not None else [])
            arrived.set()

        self._store.when_local([chunk], arrival)
        while not arrived.wait(WAITING_S):
            if self._stopping.is_set():
                raise Stopped
        if failed:
            raise Spent
        start = chunk * self._store.chunk_bytes
        buffer = memoryview(bytearray(min(self._store.chunk_bytes, self._store.size_bytes - start)))
        self._store.read(start, buffer)
        return bytes(buffer)
