"""A lane: one connection in transmission, with as many requests in flight as the caller likes.

Request and reply travel at the same time. Whenever the server does not take more requests, the replies that wait are
taken in, so that two full pipes never wait for each other; see ``transport``.

One thread uses a lane at a time. A lock stands behind that rule, for two guests: ``close`` from another thread, and
the device's flush, which must reach every connection of a server without NBD_FLAG_CAN_MULTI_CONN.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from whimbrel.errors import PermissionDenied, Unavailable, WhimbrelError
from whimbrel.nbd import protocol as p
from whimbrel.nbd.fault import request_fault
from whimbrel.nbd.negotiate import Export
from whimbrel.nbd.reply import ReplyReader
from whimbrel.nbd.request import ZEROES, Request, Whole
from whimbrel.nbd.transport import Transport
from whimbrel.ports.block import Completion, Operation

ZERO_STEP_BYTES: Final = 128 << 20
"""One WRITE_ZEROES at most: a server that must write the zeros answers each well within the timeout."""
READ_COMMANDS: Final = frozenset({p.CMD_READ, p.CMD_BLOCK_STATUS})
PARTS_IN_FLIGHT: Final = 64
"""Wire requests that one call may put in flight before it waits for some to end."""
FLUSH_PATIENCE: Final = 10
"""Times the timeout: fsync of a full page cache says nothing for minutes, and rightly so."""


class NbdLane:
    """See ``whimbrel.ports.block.BlockLane``. Made by ``NbdDevice.lane``.

    Offsets and lengths must be positive multiples of the device's ``block_bytes`` within its size (ValueError).
    Requests above the server's maximum payload are split and completed as one. The error of one request leaves the
    lane usable; Unavailable without ``cookie`` in its evidence means that the connection is lost, and is raised again
    by every later call.
    """

    def __init__(
        self,
        transport: Transport,
        export: Export,
        *,
        read_only: bool,
        timeout_s: float,
        flush_device: Callable[[NbdLane], None] | None = None,
        closed: Callable[[NbdLane], None] | None = None,
    ) -> None:
        self.export = export
        self.unflushed = False
        """Whether a write was submitted that no flush of this connection has covered."""
        self._transport = transport
        self._read_only = read_only
        self._timeout_s = timeout_s
        self._flush_device = flush_device
        self._on_closed = closed
        self._pending: dict[int, Request] = {}
        self._replies = ReplyReader(transport, self._pending, structured=export.structured)
        self._done: deque[Completion | WhimbrelError] = deque()
        self._in_flight = 0
        self._cookie = 0
        self._lock = threading.RLock()
        self._broken: WhimbrelError | None = None
        self._closing = False

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet reaped."""
        return self._in_flight

    @property
    def broken(self) -> bool:
        """Whether the connection is lost."""
        return self._broken is not None

    @property
    def closed(self) -> bool:
        """Whether we gave the connection up."""
        return self._closing

    def patience(self, seconds: float) -> None:
        """From now on a silence of ``seconds`` while something is asked of the server is a stall."""
        with self._lock:
            self._timeout_s = seconds
            self._transport.patience(seconds)

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        """See BlockLane. Raises Unavailable."""
        length = len(buffer)
        self._check(offset, length)
        with self._lock:
            completion = self._begin("read", offset, length)
            step = self.export.max_payload_bytes
            if length <= step:
                self._post(p.CMD_READ, 0, Request("read", offset, length, buffer, completion), None)
                return completion.cookie
            whole = Whole(completion)
            for start in range(0, length, step):
                part = buffer[start : start + step]
                self._post_part(p.CMD_READ, 0, Request("read", offset + start, len(part), part, whole), None)
            return self._all_sent(whole)

    def submit_write(self, offset: int, data: memoryview) -> int:
        """See BlockLane. Raises PermissionDenied, Unavailable."""
        length = len(data)
        self._check_write(offset, length)
        with self._lock:
            completion = self._begin("write", offset, length)
            step = self.export.max_payload_bytes
            if length <= step:
                self._post(p.CMD_WRITE, 0, Request("write", offset, length, None, completion), data)
                return completion.cookie
            whole = Whole(completion)
            for start in range(0, length, step):
                part = data[start : start + step]
                self._post_part(p.CMD_WRITE, 0, Request("write", offset + start, len(part), None, whole), part)
            return self._all_sent(whole)

    def submit_zero(self, offset: int, length: int, *, may_punch: bool = True) -> int:
        """See BlockLane. A server without NBD_CMD_WRITE_ZEROES gets zeros written. Raises as ``submit_write``."""
        self._check_write(offset, length)
        native = self.export.has(p.TRANSMISSION_SEND_WRITE_ZEROES)
        command = p.CMD_WRITE_ZEROES if native else p.CMD_WRITE
        flags = p.CMD_FLAG_NO_HOLE if native and not may_punch else 0
        step = ZERO_STEP_BYTES if native else min(len(ZEROES), self.export.max_payload_bytes)
        with self._lock:
            whole = Whole(self._begin("zero", offset, length))
            for start in range(offset, offset + length, step):
                size = min(step, offset + length - start)
                data = None if native else ZEROES[:size]
                self._post_part(command, flags, Request("zero", start, size, None, whole), data)
            return self._all_sent(whole)

    def reap(self) -> Completion:
        """See BlockLane. Raises the request's error with ``cookie`` in its evidence; ValueError: nothing in flight."""
        done = self._done
        with self._lock:
            if not self._in_flight:
                raise ValueError("nothing is in flight on this lane")
            while not done:
                self._usable()
                self._receive()
            self._in_flight -= 1
            result = done.popleft()
        if isinstance(result, Completion):
            return result
        raise result

    def status(self, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
        """NBD_CMD_BLOCK_STATUS with nothing in flight: per context name, (length, flags) from ``offset`` on.

        A context's list may end before the range does, or reach beyond it. Raises Unavailable, PermissionDenied,
        Unsupported.
        """
        with self._lock:
            assert not self._in_flight
            self._usable()
            self._in_flight += 1
            request = Request("status", offset, length, None, None)
            self._post(p.CMD_BLOCK_STATUS, 0, request, None)
            while self._pending:
                self._receive()
            self._in_flight -= 1
            if request.error is not None:
                raise self._fault(request)
            return {
                self.export.contexts.get(number, f"#{number}"): found
                for number, found in (request.descriptors or {}).items()
            }

    def flush(self) -> None:
        """See BlockLane: covers the writes of all lanes of the device. Raises QuotaExceeded, Unavailable."""
        if self._flush_device is None:
            self.flush_connection()
        else:
            self._flush_device(self)

    def flush_connection(self, patience: int = FLUSH_PATIENCE) -> None:
        """Send NBD_CMD_FLUSH and wait, a silence of ``patience`` times the timeout being a stall.

        Completions that arrive meanwhile are kept for ``reap``.

        A server that does not offer the command has nothing to flush, by the protocol document.
        """
        with self._lock:
            self._usable()
            if not self.export.has(p.TRANSMISSION_SEND_FLUSH):
                self.unflushed = False
                return
            writes_before = {key for key, request in self._pending.items() if request.operation in {"write", "zero"}}
            request = Request("flush", 0, 0, None, None)
            self._transport.patience(self._timeout_s * patience)
            self._post(p.CMD_FLUSH, 0, request, None)
            cookie = self._cookie
            while cookie in self._pending:
                self._receive()
            self._transport.patience(self._timeout_s)
            if request.error is not None:
                raise self._fault(request)
            # A write that was on its way when the flush was sent is not covered by it.
            self.unflushed = bool(writes_before)

    def close(self) -> None:
        """See BlockLane: says goodbye if the lane is idle, interrupts whoever is in it otherwise."""
        self._closing = True
        idle = self._lock.acquire(blocking=False)
        try:
            if idle and self._broken is None:
                self._goodbye()
            self._transport.interrupt()
        finally:
            if idle:
                self._lock.release()
        with self._lock:
            if self._broken is None:
                self._broken = Unavailable(f"the connection to NBD server {self._transport.address} was closed by us")
            self._transport.close()
        if self._on_closed is not None:
            self._on_closed(self)

    def _goodbye(self) -> None:
        with contextlib.suppress(WhimbrelError, OSError):
            if self.unflushed and not self._pending and not self.export.has(p.TRANSMISSION_CAN_MULTI_CONN):
                self.flush_connection(patience=1)
            header = p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0)
            if not self._pending:
                self._transport.send(header, None, self._receive)

    def _check(self, offset: int, length: int) -> None:
        export = self.export
        if offset < 0 or length <= 0 or offset + length > export.size_bytes:
            raise ValueError(f"{length} bytes at {offset} are not within the {export.size_bytes} of the device")
        if (offset | length) & (export.min_block_bytes - 1):
            raise ValueError(f"{length} bytes at {offset} are not whole blocks of {export.min_block_bytes} bytes")

    def _check_write(self, offset: int, length: int) -> None:
        if self._read_only:
            raise PermissionDenied(
                f"NBD export {self._transport.address} was opened for reading only",
                action="open the endpoint with writable=True",
            )
        self._check(offset, length)

    def _usable(self) -> None:
        if self._broken is not None:
            again = type(self._broken)(self._broken.message, action=self._broken.action)
            again.evidence.update(self._broken.evidence)
            raise again

    def _begin(self, operation: Operation, offset: int, length: int) -> Completion:
        self._usable()
        self._in_flight += 1
        if operation != "read":
            self.unflushed = True
        return Completion(self._cookie + 1, operation, offset, length)

    def _post_part(self, command: int, flags: int, request: Request, data: memoryview | None) -> None:
        assert isinstance(request.owner, Whole)
        request.owner.parts += 1
        self._post(command, flags, request, data)
        while len(self._pending) >= PARTS_IN_FLIGHT:
            self._receive()

    def _all_sent(self, whole: Whole) -> int:
        self._part_done(whole)
        return whole.completion.cookie

    def _part_done(self, whole: Whole) -> None:
        whole.parts -= 1
        if not whole.parts:
            self._done.append(whole.error or whole.completion)

    def _post(self, command: int, flags: int, request: Request, data: memoryview | None) -> None:
        self._cookie = cookie = self._cookie + 1
        self._pending[cookie] = request
        if command in READ_COMMANDS:
            self._replies.reads += 1
        header = p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, request.offset, request.length)
        try:
            self._transport.send(header, data, self._receive)
        except BaseException as lost:  # noqa: BLE001 - raised again by _lose
            self._lose(lost)

    def _receive(self) -> None:
        """Take in one reply message and note what it completes."""
        try:
            request = self._replies.receive()
        except BaseException as lost:  # noqa: BLE001 - raised again by _lose
            self._lose(lost)
        if request is None:
            return
        owner = request.owner
        if isinstance(owner, Completion):
            self._done.append(self._fault(request, cookie=owner.cookie) if request.error is not None else owner)
        elif owner is not None:
            if request.error is not None and owner.error is None:
                owner.error = self._fault(request, cookie=owner.completion.cookie)
            self._part_done(owner)

    def _fault(self, request: Request, **evidence: object) -> WhimbrelError:
        assert request.error is not None
        code, text = request.error
        what = f"{request.operation} {request.length} bytes at {request.offset}"
        return request_fault(
            self._transport.address, what, code, text, offset=request.offset, length=request.length, **evidence
        )

    def _lose(self, lost: BaseException) -> NoReturn:
        """Give the connection up. An exception thrown into this thread (a cancelled activity) loses our place too."""
        if self._closing and self._broken is None and isinstance(lost, WhimbrelError):
            lost = Unavailable(f"the connection to NBD server {self._transport.address} was closed by us")
        if self._broken is None:
            self._broken = lost if isinstance(lost, WhimbrelError) else self._interrupted(lost)
            self._broken.evidence.setdefault("in_flight", str(self._in_flight))
        self._transport.interrupt()
        raise lost

    def _interrupted(self, by: BaseException) -> Unavailable:
        return Unavailable(
            f"the exchange with NBD server {self._transport.address} was interrupted by {type(by).__name__}",
            action="nothing yet: a new connection is opened",
        )
