"""A raw volume read through libvirt's own connection: any URI, no NBD server, no monitor, no port on the host.

``virStorageVolDownload`` sends a range over a stream; with the sparse flag holes come as lengths instead of zeros
(https://libvirt.org/html/libvirt-libvirt-storage.html#virStorageVolDownload). Every read is a stream of its own with
the length of the read: the client takes in all that the daemon sends, so a longer one would fill memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import libvirt

from drivers.libvirt import domains, point_mark
from drivers.libvirt.connection import Connection
from whimbrel.dataplane.lanes import SyncLane
from whimbrel.errors import Conflict, NotFound, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.endpoint import LibvirtVolumeEndpoint
from whimbrel.model.extent import Extent, merge
from whimbrel.ports.block import BlockDevice, BlockLane

RECEIVE_BYTES = 1 << 20
PROBE_BYTES = 64 << 10
FIRST_STEP_BYTES = 1 << 20
LAST_STEP_BYTES = 32 << 20
"""Allocation is probed at points this far apart while there is data: the end of data is not told without sending it."""
HOLE_STEP_BYTES = 1 << 40
OFF_CHECK_S = 1.0
AT_A_HOLE = -3
"""What ``virStreamRecvFlags`` returns in front of a hole (``VIR_STREAM_RECV_STOP_AT_HOLE``)."""


def volume_opener(find: Callable[[str], Any]) -> Callable[[LibvirtVolumeEndpoint], BlockDevice]:
    """An opener for ``whimbrel.dataplane.register_opener``; ``find`` gives the LibvirtCloud of a name."""

    def opener(endpoint: LibvirtVolumeEndpoint) -> BlockDevice:
        cloud = find(endpoint.cloud)
        open_volume = getattr(cloud, "open_volume", None)
        if open_volume is None:
            raise Unsupported(f"cloud {endpoint.cloud} is no libvirt host", kind=endpoint.kind)
        device: BlockDevice = open_volume(endpoint)
        return device

    return opener


class StreamDevice:
    """Implements whimbrel.ports.block.BlockDevice, read-only, over one raw volume of a VM that is off."""

    def __init__(self, connection: Connection, endpoint: LibvirtVolumeEndpoint) -> None:
        """Raises NotFound when the point is closed or the volume gone, Conflict when the VM is on, Unavailable."""
        self._connection = connection
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._lanes: list[SyncLane] = []
        self._off_at = 0.0
        self._sparse = True
        with connection.using(f"opening volume {endpoint.path}", volume=endpoint.path) as conn:
            mark = point_mark.read(domains.get(conn, endpoint.vm))
            if mark is None or mark.key != endpoint.point:
                raise NotFound(f"point {endpoint.point} is not open", action="open the point again", vm=endpoint.vm)
            self._size_bytes = int(conn.storageVolLookupByPath(endpoint.path).info()[1])
        self._check_off()

    @property
    def size_bytes(self) -> int:
        """Capacity of the volume when it was opened."""
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        """True."""
        return True

    @property
    def block_bytes(self) -> int:
        """1: the daemon reads through the page cache."""
        return 1

    def lane(self) -> BlockLane:
        """See BlockDevice; lanes share the connection, each read is a stream of its own."""
        lane = SyncLane(self)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice. Holes are exact where they begin after data that was probed, so some count as data."""
        end = self._size_bytes if length is None else min(start + length, self._size_bytes)
        return merge(self._runs(start, end))

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Raises Unsupported: a volume behind a stream tells no changes."""
        raise Unsupported(f"{self._endpoint.path} does not track changes", action="use the block-hash scan")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``; a connection that breaks is opened again once. Raises Unavailable, Conflict.

        What was read counts only if the VM is still off afterwards (looked at once a second).
        """
        if offset < 0 or offset + len(buffer) > self._size_bytes:
            raise Unavailable(f"{len(buffer)} bytes at {offset} are outside {self._endpoint.path}")
        if not buffer:
            return  # a length of 0 would mean "to the end" to libvirt
        try:
            self._read(offset, buffer)
        except Unavailable:
            self._read(offset, buffer)
        if time.monotonic() - self._off_at > OFF_CHECK_S:
            self._check_off()

    def write_from(self, offset: int, data: memoryview) -> None:
        """Raises PermissionDenied."""
        raise PermissionDenied(f"{self._endpoint.path} is read through a stream and cannot be written")

    def zero(self, offset: int, length: int, *, may_punch: bool) -> None:
        """Raises PermissionDenied."""
        raise PermissionDenied(f"{self._endpoint.path} is read through a stream and cannot be written")

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Close all lanes; the cloud's connection stays."""
        with self._lock:
            for lane in self._lanes:
                lane.close()
            self._lanes.clear()

    def _check_off(self) -> None:
        with self._connection.using(f"looking at VM {self._endpoint.vm}", vm=self._endpoint.vm) as conn:
            if domains.get(conn, self._endpoint.vm).isActive():
                raise Conflict(
                    "the VM was started while its disks were read: what was read is worth nothing",
                    action="shut it down, and let the copy begin anew",
                    vm=self._endpoint.vm,
                )
        self._off_at = time.monotonic()

    def _read(self, offset: int, buffer: memoryview) -> None:
        done = 0
        for part in self._sections(offset, len(buffer)):
            size = part if isinstance(part, int) else len(part)
            if done + size > len(buffer):
                raise Unavailable(f"{self._endpoint.path}: more was sent than asked for", offset=offset)
            buffer[done : done + size] = bytes(size) if isinstance(part, int) else part
            done += size
        if done < len(buffer):
            raise Unavailable(f"{self._endpoint.path} ends at {offset + done}, it had {self._size_bytes} bytes")

    def _sections(self, offset: int, length: int) -> Iterator[bytes | int]:
        """What one stream sends: data as bytes, a hole as its length. A stream that is not read to its end is aborted.

        A daemon or pool that knows no sparse streams refuses the flag, and is asked without it from then on.
        """
        with self._connection.using(f"reading volume {self._endpoint.path}", volume=self._endpoint.path) as conn:
            volume = conn.storageVolLookupByPath(self._endpoint.path)
            stream = self._begin(conn, volume, offset, length)
            finished = False
            try:
                while True:
                    part = stream.recvFlags(RECEIVE_BYTES, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE if self._sparse else 0)
                    if part == AT_A_HOLE:
                        yield int(stream.recvHole(0))
                    elif not isinstance(part, bytes):
                        raise Unavailable(f"{self._endpoint.path}: the stream answered {part}")
                    elif part:
                        yield part
                    else:
                        break
                stream.finish()
                finished = True
            finally:
                if not finished:
                    with suppress(libvirt.libvirtError):
                        stream.abort()

    def _begin(self, conn: Any, volume: Any, offset: int, length: int) -> Any:
        if self._sparse:
            stream = conn.newStream(0)
            try:
                volume.download(stream, offset, length, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
                return stream
            except libvirt.libvirtError as error:
                refused = {
                    libvirt.VIR_ERR_INVALID_ARG,
                    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
                    libvirt.VIR_ERR_NO_SUPPORT,
                }
                if error.get_error_code() not in refused:
                    raise
                self._sparse = False
        stream = conn.newStream(0)
        volume.download(stream, offset, length, 0)
        return stream

    def _runs(self, at: int, end: int) -> Iterator[Extent]:
        step = FIRST_STEP_BYTES
        while at < end:
            length, zero = self._probe(at, min(end - at, PROBE_BYTES)) if self._sparse else (end - at, False)
            if zero and length == PROBE_BYTES and at + length < end:
                # The begin of a hole: it tells its whole length at once, and what comes behind it is not waited for.
                length += self._hole(at + length, min(end - at - length, HOLE_STEP_BYTES))
            if zero:
                step = FIRST_STEP_BYTES
            elif self._sparse:
                length = min(end - at, step)
                step = min(step * 2, LAST_STEP_BYTES)
            yield Extent(at, length, zero=zero)
            at += length

    def _probe(self, at: int, length: int) -> tuple[int, bool]:
        """The section that begins at ``at``: its length as far as ``length`` goes, and whether it is a hole."""
        sections = self._sections(at, length)
        first = next(sections, b"")
        sections.close()  # type: ignore[attr-defined]
        return (first, True) if isinstance(first, int) else (max(len(first), 1), False)

    def _hole(self, at: int, length: int) -> int:
        """Length of the hole at ``at``; 0 when there is data."""
        size, zero = self._probe(at, length)
        return size if zero else 0
