"""Volumes of the in-memory cloud that are imported while a VM runs on them, over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from drivers.memory.calls import CallLog, port_call
from drivers.memory.disk import GRAIN_BYTES, Disk
from drivers.memory.state import CloudState, Volume
from whimbrel.dataplane.memorydevice import MemoryDisk
from whimbrel.errors import Conflict, NotFound, NotReady, Unavailable
from whimbrel.model.vm import TargetDisk

PORT = "imports"
GATEWAY_ADDRESS = "127.0.0.1"
TIMEOUT_S = 60.0


def fetch(url: str, start: int, length: int) -> bytes:
    """A range of what lies at ``url``. Raises Unavailable; the address is a secret, so it is not told."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", where.path, headers={"Range": f"bytes={start}-{start + length - 1}"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.PARTIAL_CONTENT or len(content) != length:
            raise Unavailable(f"the gateway answered {answer.status} with {len(content)} of {length} bytes")
        return content
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable("the gateway of the import does not answer", cause=error) from error
    finally:
        connection.close()


class Lazy(MemoryDisk):
    """The content of an import at one instant: what had not arrived then is fetched when somebody reads it."""

    def __init__(self, size_bytes: int, blocks: dict[int, bytes], missing: set[int], url: str) -> None:
        super().__init__(size_bytes, tracked=False)
        self._blocks, self._missing, self._url = blocks, missing, url

    def read_to(self, offset: int, buffer: memoryview) -> None:
        """Read, after what is missing of it was fetched."""
        with self.lock:
            bring(self, self._missing, self._url, offset, len(buffer))
            super().read_to(offset, buffer)

    def allocated(self) -> list[int]:
        """Everything: an import does not know its holes."""
        return list(range(-(-self.size_bytes // GRAIN_BYTES)))


class ImportedDisk(Disk):
    """A disk whose bytes come from ``url`` until it is detached. It tells changes, though it is raw, as RBD does."""

    def __init__(self, size_bytes: int, url: str) -> None:
        super().__init__(size_bytes, "raw")
        self.url = url
        self.detached = False
        self.missing = set(range(-(-size_bytes // GRAIN_BYTES)))

    @property
    def trackable(self) -> bool:
        """Always."""
        return True

    def read_to(self, offset: int, buffer: memoryview) -> None:
        """Read, after what is missing of it was fetched."""
        with self.lock:
            bring(self, self.missing, self.url, offset, len(buffer))
            super().read_to(offset, buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write; a grain that is not there yet is fetched first."""
        with self.lock:
            bring(self, self.missing, self.url, offset, len(data))
            super().write(offset, data)

    def discard(self, offset: int, length: int) -> None:
        """Zero a range; likewise."""
        with self.lock:
            bring(self, self.missing, self.url, offset, length)
            super().discard(offset, length)

    def snapshot(self) -> MemoryDisk:
        """A point in time, which fetches for itself what is missing now."""
        with self.lock:
            return Lazy(self.size_bytes, dict(self._blocks), set(self.missing), self.url)

    def allocated(self) -> list[int]:
        """Everything, until it is detached."""
        return super().allocated() if self.detached else list(range(-(-self.size_bytes // GRAIN_BYTES)))


def bring(disk: MemoryDisk, missing: set[int], url: str, offset: int, length: int) -> None:
    """Fetch the grains of a range that are missing. The caller holds the disk's lock."""
    if length <= 0 or not missing:
        return
    for number in range(offset // GRAIN_BYTES, (offset + length - 1) // GRAIN_BYTES + 1):
        if number in missing:
            start = number * GRAIN_BYTES
            content = fetch(url, start, min(GRAIN_BYTES, disk.size_bytes - start))
            disk._blocks[number] = content.ljust(GRAIN_BYTES, b"\0")
            missing.discard(number)


class MemoryImports:
    """ImportPort on a cloud's state."""

    gateway_address = GATEWAY_ADDRESS

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def begin(self, disk: TargetDisk, url: str, *, migration: str) -> None:
        """Replace an empty volume's disk by one that imports."""
        with self._state.lock:
            volume = self._volume(disk)
            if volume.migration != migration:
                raise Conflict(f"volume {volume.name} was not made by migration {migration}")
            if isinstance(volume.disk, ImportedDisk):
                if volume.disk.url != url:
                    raise Conflict(f"volume {volume.name} imports from another address")
                return
            if volume.disk.allocated():
                raise Conflict(f"volume {volume.name} is not empty: no import is put in its place")
            fetch(url, 0, 1)
            volume.disk = ImportedDisk(volume.disk.size_bytes, url)

    @port_call(PORT)
    def fill(
        self, disk: TargetDisk, *, should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> bool:
        """Fetch grain by grain."""
        with self._state.lock:
            found = self._volume(disk).disk
        if not isinstance(found, ImportedDisk):
            raise NotFound(f"volume {disk.volume.name} is not being imported")
        while True:
            if should_stop():
                return False
            with found.lock:
                number = min(found.missing, default=None)
                if number is None:
                    on_progress(found.size_bytes, found.size_bytes)
                    return True
                bring(found, found.missing, found.url, number * GRAIN_BYTES, 1)
                on_progress(found.size_bytes - len(found.missing) * GRAIN_BYTES, found.size_bytes)

    @port_call(PORT)
    def give_up(self, disk: TargetDisk, *, migration: str) -> None:
        """An empty volume again, unless it is detached."""
        with self._state.lock, contextlib.suppress(NotFound):
            volume = self._volume(disk)
            if volume.migration != migration or not imports(volume.disk):
                return
            user = self._state.user_of(volume.key, running=True)
            if user is not None:
                raise NotReady(f"volume {volume.name} is in use by VM {user.spec.name}")
            volume.disk = Disk(volume.disk.size_bytes, "raw")

    @port_call(PORT)
    def try_out(self, disk: TargetDisk, *, migration: str) -> None:
        """Fetch the first grain."""
        with self._state.lock:
            found = self._volume(disk).disk
            if not isinstance(found, ImportedDisk):
                raise NotFound(f"volume {disk.volume.name} is not being imported")
            found.read(0, min(GRAIN_BYTES, found.size_bytes))

    @port_call(PORT)
    def blockers(self, pools: Sequence[str]) -> Sequence[str]:
        """None."""
        return ()

    def _volume(self, disk: TargetDisk) -> Volume:
        found = self._state.volumes.get((disk.volume.pool, disk.volume.name))
        if found is None:
            raise NotFound(f"no volume {disk.volume.name} in pool {disk.volume.pool} on cloud {self._state.name}")
        return found


def imports(disk: Disk) -> bool:
    """Whether the disk still needs its source."""
    return isinstance(disk, ImportedDisk) and not disk.detached


def detach(disk: Disk) -> None:
    """The source is no longer asked for anything. Raises NotReady while bytes are missing."""
    if isinstance(disk, ImportedDisk) and not disk.detached:
        with disk.lock:
            if disk.missing:
                raise NotReady(f"{len(disk.missing)} grains of the import have not arrived")
            disk.detached = True
