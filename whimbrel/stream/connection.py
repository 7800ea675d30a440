"""One client in transmission.

A thread of its own reads the requests and does at once what needs neither the source nor stable storage. Requests
that miss are parked in the store, without a thread; when their chunks have come, and for flushes, a few workers of
the connection go on with them. So a miss delays no later hit, and replies come in any order. A client with too much
parked is not read from until some of it is done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from whimbrel.errors import PermissionDenied, QuotaExceeded, WhimbrelError
from whimbrel.nbd import protocol as p
from whimbrel.stream.handshake import CONTEXTS, Agreed
from whimbrel.stream.hydration import Access
from whimbrel.stream.protect.change import Change, ChangeKind, Protection
from whimbrel.stream.statistics import Statistics
from whimbrel.stream.status import Runs, allocation_runs, local_runs
from whimbrel.stream.store import Store
from whimbrel.stream.wire import Gone, Wire

WORKERS: Final = 4
PARKED_REQUESTS: Final = 512
PARKED_BYTES: Final = 128 << 20
FINISH_S: Final = 5.0
FLAGS_OF: Final = {
    p.CMD_READ: p.CMD_FLAG_DF,
    p.CMD_WRITE: p.CMD_FLAG_FUA,
    p.CMD_FLUSH: 0,
    p.CMD_TRIM: p.CMD_FLAG_FUA,
    p.CMD_CACHE: 0,
    p.CMD_WRITE_ZEROES: p.CMD_FLAG_FUA | p.CMD_FLAG_NO_HOLE,
    p.CMD_BLOCK_STATUS: p.CMD_FLAG_REQ_ONE,
}
"""Some clients set FUA on any command ("Command flags" lets them where the server offers it)."""
CHANGES: Final[dict[int, ChangeKind]] = {p.CMD_WRITE: "write", p.CMD_WRITE_ZEROES: "zero", p.CMD_TRIM: "trim"}

Accessed = Callable[[int, int, Access, float], None]
"""Told of every access: offset, length, what, and when by time.monotonic. Must be quick."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Request:
    """One request of the client; ``data`` is the payload of a write."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: memoryview | None = None
    came_at: float = 0.0
    missed: bool = False
    made: bool = False
    """Carried out by the protection; what is left is the answer."""


class Connection:
    """Serves one client until it leaves: ``run`` in a thread of the caller's, ``stop`` from any."""

    def __init__(
        self,
        wire: Wire,
        agreed: Agreed,
        store: Store,
        statistics: Statistics,
        accessed: Accessed,
        *,
        protection: Protection | None = None,
    ) -> None:
        self._wire = wire
        self._agreed = agreed
        self._store = store
        self._statistics = statistics
        self._accessed = accessed
        self._protection = protection
        self._work: queue.SimpleQueue[tuple[Request, WhimbrelError | None] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._parked = 0
        self._parked_bytes = 0
        self._stopping = False
        self._workers = [threading.Thread(target=self._labour, name="nbd-work", daemon=True) for _ in range(WORKERS)]
        self._started = False

    def run(self) -> None:
        """Serve; returns when the client has left, broke the rules, or ``stop`` was called."""
        header = bytearray(p.REQUEST.size)
        view = memoryview(header)
        try:
            while True:
                self._wire.receive_exactly(view)
                if self._stopping:
                    break
                magic, flags, command, cookie, offset, length = p.REQUEST.unpack(header)
                if magic != p.REQUEST_MAGIC:
                    raise Gone("the client does not speak the protocol")
                if command == p.CMD_DISC:
                    self._finish()
                    break
                request = Request(command, flags, cookie, offset, length, came_at=time.monotonic())
                if command == p.CMD_WRITE:
                    if length > p.DEFAULT_MAX_PAYLOAD_BYTES:
                        raise Gone("a write longer than the announced maximum")
                    request.data = memoryview(bytearray(length))
                    self._wire.receive_exactly(request.data)
                self._begin(request)
        except Gone as gone:
            log.info("client.gone", extra={"reason": str(gone)})
        finally:
            self._end()

    def stop(self) -> None:
        """Cut the client off."""
        with self._room:
            self._stopping = True
            self._room.notify_all()
        self._wire.interrupt()

    def hung_up(self) -> bool:
        """Whether the client has gone, though requests of it may still wait to be read."""
        return self._wire.hung_up()

    def _finish(self) -> None:
        """Let what has been asked for be answered, unless that needs an absent source."""
        with self._room:
            self._room.wait_for(lambda: self._stopping or not self._parked, FINISH_S)

    def _end(self) -> None:
        """Drop what is parked (nobody was told that it is done), wait for what is being done, close."""
        with self._room:
            self._stopping = True
        if self._started:
            for _ in self._workers:
                self._work.put(None)
            for worker in self._workers:
                worker.join()
        self._wire.close()

    # The reading thread

    def _begin(self, request: Request) -> None:
        refusal = self._refusal(request)
        if refusal:
            self._fail(request, refusal, "the request is not valid")
            return
        store, command = self._store, request.command
        if command in {p.CMD_READ, p.CMD_WRITE, p.CMD_WRITE_ZEROES, p.CMD_CACHE}:
            reading = command in {p.CMD_READ, p.CMD_CACHE}
            ask = store.missing if reading else store.needs
            needed = ask(request.offset, request.length)
            if command != p.CMD_CACHE:
                self._accessed(request.offset, request.length, "read" if reading else "write", request.came_at)
                request.missed = bool(needed)
                self._statistics.asked(reading=reading, missed=request.missed)
            if self._protection is not None and self._begin_protected(request, needed):
                return
            if needed:
                self._park(request)
                store.when_local(needed, lambda error: self._work.put((request, error)))
                return
        elif command == p.CMD_TRIM:
            self._accessed(request.offset, request.length, "trim", request.came_at)
            if self._protection is not None and self._begin_protected(request, []):
                return
        if command in {p.CMD_READ, p.CMD_CACHE, p.CMD_BLOCK_STATUS} or (
            command == p.CMD_WRITE and not request.flags & p.CMD_FLAG_FUA
        ):
            self._serve(request)
        else:
            self._park(request)
            self._work.put((request, None))

    def _begin_protected(self, request: Request, needed: list[int]) -> bool:
        """Let the protection carry a change out, or hold a read back; False: go on as without it."""
        protection, store = self._protection, self._store
        assert protection is not None
        kind = CHANGES.get(request.command)
        if kind is None:
            if not protection.holds(*store.span(request.offset, request.length)):
                return False
            self._park(request)
            protection.when_settled(
                lambda _error: store.when_local(
                    store.missing(request.offset, request.length), lambda error: self._work.put((request, error))
                )
            )
            return True
        self._park(request)

        def done(error: WhimbrelError | None) -> None:
            request.made = True
            self._work.put((request, error))

        def submit(error: WhimbrelError | None) -> None:
            if error is not None:
                self._work.put((request, error))
                return
            may_punch = not request.flags & p.CMD_FLAG_NO_HOLE
            protection.submit(Change(kind, request.offset, request.length, request.data, may_punch, done))

        if needed:
            store.when_local(needed, submit)
        else:
            submit(None)
        return True

    def _refusal(self, request: Request) -> int:
        """The error of a request that can be refused by its looks; 0 if it may go on."""
        known = FLAGS_OF.get(request.command)
        if known is None or request.flags & ~(known | p.CMD_FLAG_FUA):
            return p.EINVAL
        if request.command == p.CMD_FLUSH:
            return 0 if not (request.offset or request.length) else p.EINVAL
        if not request.length or (request.command == p.CMD_BLOCK_STATUS and not self._agreed.contexts):
            return p.EINVAL
        if request.offset + request.length > self._store.size_bytes:
            return p.ENOSPC if request.command in {p.CMD_WRITE, p.CMD_WRITE_ZEROES} else p.EINVAL
        if request.command == p.CMD_READ and request.length > p.DEFAULT_MAX_PAYLOAD_BYTES:
            return p.EOVERFLOW
        return 0

    def _park(self, request: Request) -> None:
        """Count a request that the workers will end; waits while there are too many."""
        if not self._started:
            self._started = True
            for worker in self._workers:
                worker.start()
        size = 0 if request.data is None else len(request.data)
        with self._room:
            while self._parked >= PARKED_REQUESTS or self._parked_bytes + size > PARKED_BYTES:
                if self._stopping:
                    raise Gone("stopped")
                self._room.wait()
            self._parked += 1
            self._parked_bytes += size

    # The workers

    def _labour(self) -> None:
        while (item := self._work.get()) is not None:
            request, error = item
            try:
                if self._stopping:
                    continue
                if error is not None:
                    self._fail(request, _code(error), error.message)
                    continue
                if request.missed:
                    self._statistics.miss_latency.note(time.monotonic() - request.came_at)
                self._serve(request)
            except Gone:
                self._wire.interrupt()
            finally:
                with self._room:
                    self._parked -= 1
                    self._parked_bytes -= 0 if request.data is None else len(request.data)
                    self._room.notify_all()

    # Either

    def _serve(self, request: Request) -> None:
        """Do what is asked, with everything it needs local, and answer. Raises Gone."""
        store, offset, length = self._store, request.offset, request.length
        try:
            if request.command == p.CMD_READ:
                data = memoryview(bytearray(length))
                store.read(offset, data)
                self._statistics.add(read_bytes=length)
                self._answer_read(request, data)
                return
            if request.command == p.CMD_BLOCK_STATUS:
                self._answer_status(request)
                return
            if request.command == p.CMD_WRITE:
                assert request.data is not None
                if not request.made:
                    store.write(offset, request.data)
                self._statistics.add(written_bytes=length)
            elif request.command == p.CMD_WRITE_ZEROES and not request.made:
                store.zero(offset, length, may_punch=not request.flags & p.CMD_FLAG_NO_HOLE)
            elif request.command == p.CMD_TRIM and not request.made:
                store.trim(offset, length)
            if request.command == p.CMD_FLUSH or (request.flags & p.CMD_FLAG_FUA and request.command != p.CMD_CACHE):
                self._statistics.add(flushes=1)
                store.flush()
        except WhimbrelError as error:
            log.warning("request.failed", extra={"command": request.command, "offset": offset, "error": str(error)})
            self._fail(request, _code(error), error.message)
            return
        self._wire.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, request.cookie))

    def _answer_read(self, request: Request, data: memoryview) -> None:
        if not self._agreed.structured:
            self._wire.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, request.cookie), data)
            return
        size = p.CHUNK_OFFSET.size + len(data)
        head = p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_FLAG_DONE, p.CHUNK_OFFSET_DATA, request.cookie, size)
        self._wire.send(head + p.CHUNK_OFFSET.pack(request.offset), data)

    def _answer_status(self, request: Request) -> None:
        one = bool(request.flags & p.CMD_FLAG_REQ_ONE)
        tables = {CONTEXTS[p.BASE_ALLOCATION]: allocation_runs, CONTEXTS[p.WHIMBREL_LOCAL]: local_runs}
        answers: list[tuple[int, Runs]] = [
            (number, tables[number](self._store, request.offset, request.length, one=one))
            for number in sorted(self._agreed.contexts)
        ]
        parts = []
        for index, (number, runs) in enumerate(answers):
            flags = p.CHUNK_FLAG_DONE if index + 1 == len(answers) else 0
            body = p.UINT32.pack(number) + b"".join(p.STATUS_DESCRIPTOR.pack(*run) for run in runs)
            parts.append(p.CHUNK.pack(p.CHUNK_MAGIC, flags, p.CHUNK_BLOCK_STATUS, request.cookie, len(body)) + body)
        self._wire.send(*parts)

    def _fail(self, request: Request, code: int, text: str) -> None:
        """Answer with an error: a structured one where the protocol asks for it, with the reason in words."""
        if not self._agreed.structured or request.command not in {p.CMD_READ, p.CMD_BLOCK_STATUS}:
            self._wire.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, code, request.cookie))
            return
        words = text.encode()[: p.MAX_STRING_BYTES]
        body = p.CHUNK_ERROR_HEAD.pack(code, len(words)) + words
        head = p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_FLAG_DONE, p.CHUNK_ERROR, request.cookie, len(body))
        self._wire.send(head + body)


def _code(error: WhimbrelError) -> int:
    """The protocol's error for one of ours; what a guest cannot act on is an IO error."""
    if isinstance(error, QuotaExceeded):
        return p.ENOSPC
    return p.EPERM if isinstance(error, PermissionDenied) else p.EIO
