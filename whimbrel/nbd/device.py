"""An NBD export as a block device.

The device keeps one connection of its own for block status, and opens one more per lane; a server must therefore
serve at least one client more than there are lanes (``qemu-nbd --shared``).

Only that connection asks for structured replies, which block status needs. A lane takes simple replies unless told
otherwise: one header and the data, where a structured read may come in pieces. docs/dataplane.md has the figures, in
which neither is faster.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from whimbrel.errors import BaseLost, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.extent import Extent, merge
from whimbrel.nbd import protocol as p
from whimbrel.nbd.fault import violation
from whimbrel.nbd.lane import NbdLane
from whimbrel.nbd.negotiate import negotiate
from whimbrel.nbd.status import Runs, allocation, overlay, runs_within, within
from whimbrel.nbd.transport import address_of

STATUS_STEP_BYTES: Final = 128 << 20
"""First range of a block status; some servers (VDDK) take long for much more."""
STATUS_STEP_MAX_BYTES: Final = 2 << 30
"""Largest range; the length on the wire has 32 bits."""
STATUS_QUICK_S: Final = 0.1
"""An answer within this time lets the next range double."""


class NbdDevice:
    """See ``whimbrel.ports.block.BlockDevice``. Made by ``open_nbd``."""

    def __init__(
        self, endpoint: NbdEndpoint, status_lane: NbdLane, timeout_s: float, *, structured_lanes: bool = False
    ) -> None:
        self._endpoint = endpoint
        self._address = address_of(endpoint)
        self._timeout_s = timeout_s
        self._structured_lanes = structured_lanes
        self._export = status_lane.export
        self._contexts = frozenset(status_lane.export.contexts.values())
        self._status_lane = status_lane
        self._status_lock = threading.Lock()
        self._lanes: set[NbdLane] = set()
        self._lanes_lock = threading.Lock()
        self._lost_writes = False
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """Length of the export."""
        return self._export.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused: the endpoint is not ``writable``."""
        return not self._endpoint.writable

    @property
    def block_bytes(self) -> int:
        """The server's minimum block size."""
        return self._export.min_block_bytes

    @property
    def multi_conn(self) -> bool:
        """Whether the server promises NBD_FLAG_CAN_MULTI_CONN; see the module."""
        return self._export.has(p.TRANSMISSION_CAN_MULTI_CONN)

    def lane(self) -> NbdLane:
        """Open one more connection. Raises Unavailable (also: the export is no longer the same size), AuthFailed..."""
        if self._closed:
            raise Unavailable(f"the device for NBD server {self._address} was closed by us")
        transport, export = negotiate(self._endpoint, timeout_s=self._timeout_s, structured=self._structured_lanes)
        lane = NbdLane(
            transport,
            export,
            read_only=self.read_only,
            timeout_s=self._timeout_s,
            flush_device=self._flush,
            closed=self._forget,
        )
        with self._lanes_lock:
            late = self._closed
            self._lanes.add(lane)
        if late or export.size_bytes != self.size_bytes:
            lane.close()
            raise Unavailable(
                f"NBD export {self._address} changed or was closed while a connection was opened",
                action="nothing yet: the device is opened again",
                size_before=self.size_bytes,
                size_now=export.size_bytes,
            )
        return lane

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice. Without base:allocation at the server all is data. Raises Unavailable, ValueError."""
        start, end = self._range(start, length)
        if p.BASE_ALLOCATION not in self._contexts:
            return merge([Extent(start, end - start)])
        return merge(self._allocation(start, end))

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice: the union of bit 0 of ``endpoint.dirty_contexts``.

        Raises Unsupported (no contexts named), BaseLost (the server lacks one), Unavailable, ValueError.
        """
        wanted = self._endpoint.dirty_contexts
        if not wanted:
            raise Unsupported(
                f"NBD export {self._address} was opened without change tracking",
                action="name the meta contexts of its dirty bitmaps in dirty_contexts",
            )
        missing = [name for name in wanted if name not in self._contexts]
        if missing:
            raise BaseLost(
                f"NBD export {self._address} does not offer {', '.join(missing)}",
                missing=", ".join(missing),
                offered=", ".join(sorted(self._contexts)) or "none",
            )
        start, end = self._range(start, length)
        return merge(self._dirty(start, end))

    def close(self) -> None:
        """See BlockDevice."""
        with self._lanes_lock:
            self._closed = True
            lanes = list(self._lanes)
        for lane in [*lanes, self._status_lane]:
            with contextlib.suppress(Exception):
                lane.close()

    def _range(self, start: int, length: int | None) -> tuple[int, int]:
        end = self.size_bytes if length is None else start + length
        if not 0 <= start <= end <= self.size_bytes:
            raise ValueError(f"range {start}..{end} is not within the {self.size_bytes} bytes of the device")
        return start, end

    def _allocation(self, start: int, end: int) -> Iterator[Extent]:
        for offset, (runs,) in self._statuses(start, end, [p.BASE_ALLOCATION]):
            yield from within(allocation(offset, runs), start, end)

    def _dirty(self, start: int, end: int) -> Iterator[Extent]:
        wanted = list(dict.fromkeys(self._endpoint.dirty_contexts))
        known_zeros = p.BASE_ALLOCATION in self._contexts
        for offset, runs in self._statuses(start, end, [*wanted, p.BASE_ALLOCATION] if known_zeros else wanted):
            zeros = runs.pop() if known_zeros else None
            yield from within(overlay(offset, runs, zeros), start, end)

    def _statuses(self, start: int, end: int, contexts: list[str]) -> Iterator[tuple[int, list[Runs]]]:
        """Ask piece by piece: where an answer starts, and the runs of each context, cut to the shortest of them."""
        unit = self.block_bytes
        offset = start - start % unit
        end = -(-end // unit) * unit if end > start else offset
        step = STATUS_STEP_BYTES
        while offset < end:
            length = min(step, end - offset)
            began = time.monotonic()
            with self._status_lock:
                answer = self._status_lane.status(offset, length)
            quick = time.monotonic() - began < STATUS_QUICK_S
            step = min(step * 2, STATUS_STEP_MAX_BYTES) if quick else STATUS_STEP_BYTES
            silent = [name for name in contexts if name not in answer]
            if silent:
                raise violation(self._address, "a block status without a context that was agreed on", missing=silent)
            reach = min(sum(run for run, _ in answer[name]) for name in contexts)
            reach = min(reach, length)
            yield offset, [runs_within(self._address, answer[name], length, reach) for name in contexts]
            if not reach or reach % unit:
                raise violation(self._address, "a block status that is not whole blocks", reach=reach)
            offset += reach

    def _flush(self, lane: NbdLane) -> None:
        """Make all that any lane wrote stable; called by ``lane.flush``."""
        if self.multi_conn:
            lane.flush_connection()
            return
        with self._lanes_lock:
            others = [other for other in self._lanes if other is not lane and other.unflushed]
        for each in [lane, *others]:
            try:
                each.flush_connection()
            except Unavailable:
                # A lane that its owner closed meanwhile has flushed by itself, or has noted that it could not.
                if each is lane or not each.closed:
                    raise
        if self._lost_writes:
            raise Unavailable(
                f"a connection to NBD server {self._address} was lost with writes that no flush has covered",
                action="nothing yet: the writes since the last flush are made again",
                multi_conn=False,
            )

    def _forget(self, lane: NbdLane) -> None:
        with self._lanes_lock:
            self._lanes.discard(lane)
            if lane.unflushed and not self.multi_conn:
                self._lost_writes = True


def open_nbd(endpoint: NbdEndpoint, *, timeout_s: float = 30.0, structured_lanes: bool = False) -> NbdDevice:
    """Open an export.

    ``timeout_s`` bounds the connecting, and every silence of the server while something is asked of it.
    ``structured_lanes`` lets lanes ask for structured replies too: holes inside a read then cost no transfer, and a
    failed read tells the server's own words.

    Raises Unavailable (nobody there, stall, broken protocol), AuthFailed (TLS wanted or refused, certificate not
    good), NotFound (no such export; the evidence lists those there are), PermissionDenied (policy; or ``writable``
    wanted of a read-only export), Unsupported (the server is too old), InvalidPlan.
    """
    contexts = (p.BASE_ALLOCATION, *endpoint.dirty_contexts)
    transport, export = negotiate(endpoint, timeout_s=timeout_s, structured=True, contexts=contexts)
    status_lane = NbdLane(transport, export, read_only=True, timeout_s=timeout_s)
    if endpoint.writable and export.has(p.TRANSMISSION_READ_ONLY):
        status_lane.close()
        raise PermissionDenied(
            f"NBD export {address_of(endpoint)} is read-only, and it is to be written",
            action="export the disk writable",
        )
    return NbdDevice(endpoint, status_lane, timeout_s, structured_lanes=structured_lanes)
