"""Shadows of the in-memory cloud: overlays over the disks of stopped VMs."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.memory.calls import CallLog, port_call
from drivers.memory.disk import GRAIN_BYTES
from drivers.memory.export import export_disk
from drivers.memory.state import CloudState, Vm, Writer
from whimbrel.dataplane.memorydevice import MemoryDisk
from whimbrel.errors import Conflict
from whimbrel.model.point import DiskPoint, WriterSession
from whimbrel.model.vm import VmSpec

PORT = "shadows"


class Overlay(MemoryDisk):
    """Its own grains where it was written, else those of ``base``, which it never writes before ``merge``."""

    def __init__(self, base: MemoryDisk) -> None:
        super().__init__(base.size_bytes, tracked=False)
        self._base = base
        self._own: set[int] = set()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write to the overlay; a grain that it has not yet is copied up first."""
        with self.lock:
            self._copy_up(offset, len(data))
            super().write(offset, data)

    def discard(self, offset: int, length: int) -> None:
        """Zero a range in the overlay."""
        with self.lock:
            self._copy_up(offset, length)
            super().discard(offset, length)

    def read_to(self, offset: int, buffer: memoryview) -> None:
        """Read grain by grain from where it is."""
        with self.lock:
            done = 0
            while done < len(buffer):
                number, at = divmod(offset + done, GRAIN_BYTES)
                part = buffer[done : done + GRAIN_BYTES - at]
                if number in self._own:
                    super().read_to(offset + done, part)
                else:
                    self._base.read_to(offset + done, part)
                done += len(part)

    def allocated(self) -> list[int]:
        """Grains that may not be zeros, in either."""
        with self.lock:
            return sorted({*super().allocated(), *(n for n in self._base.allocated() if n not in self._own)})

    def merge(self) -> int:
        """Write what it holds to the base; the bytes written. Again: the same bytes once more."""
        with self.lock:
            brought = 0
            for number in sorted(self._own):
                start = number * GRAIN_BYTES
                content = self.read(start, min(GRAIN_BYTES, self.size_bytes - start))
                self._base.write(start, content)
                brought += len(content)
            return brought

    def _copy_up(self, offset: int, length: int) -> None:
        if length <= 0:
            return
        for number in range(offset // GRAIN_BYTES, (offset + length - 1) // GRAIN_BYTES + 1):
            if number not in self._own:
                start = number * GRAIN_BYTES
                content = self._base.read(start, min(GRAIN_BYTES, self.size_bytes - start))
                super().write(start, content)
                self._own.add(number)


class MemoryShadows:
    """ShadowPort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def open(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """Overlays over the disks of a VM that is off, made or found, and served."""
        with self._state.lock:
            found = self._off(vm)
            volumes = {disk: self._volume(found, disk) for disk in disks}
            held = self._state.writers.get(key)
            if held is not None:
                if held.volumes != volumes or held.migration != migration or not held.shadow:
                    raise Conflict(f"session {key} is open on other volumes", volumes=held.volumes)
                return held.session
            other = self._state.writer_on(set(volumes.values()))
            if other is not None:
                raise Conflict(f"writer session {other} holds a disk of VM {vm.name}", writer=other)
            serial = self._state.next_serial()
            points = []
            for disk in disks:
                base = self._state.disk_of(found, disk)
                overlay = self._state.shadows.setdefault((found.spec.ref, disk, migration), Overlay(base))
                name = f"{self._state.name}/{key}/{serial}/{disk}"
                points.append(
                    DiskPoint(key=disk, size_bytes=base.size_bytes, endpoint=export_disk(name, overlay, writable=True))
                )
            session = WriterSession(key=key, disks=tuple(points))
            self._state.writers[key] = Writer(session, volumes, migration, shadow=True)
            return session

    @port_call(PORT)
    def merge(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> int:
        """Bring the overlays' bytes into the disks, and remove the overlays."""
        with self._state.lock:
            self._end(key, migration)
            overlays = [each for each in self._of(vm, migration) if each[1] in disks]
            if not overlays:
                return 0
            found = self._off(vm)
            if found.point is not None:
                raise Conflict(f"point {found.point.key} reads the disks of VM {vm.name}", point=found.point.key)
            return sum(self._state.shadows.pop(each).merge() for each in overlays)

    @port_call(PORT)
    def drop(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> None:
        """Forget the overlays."""
        with self._state.lock:
            self._end(key, migration)
            for each in self._of(vm, migration):
                if each[1] in disks:
                    del self._state.shadows[each]

    @port_call(PORT)
    def owned(self, vm: VmSpec, migration: str) -> Sequence[str]:
        """Names of the overlays that exist."""
        with self._state.lock:
            return sorted(f"{vm.name}-{disk}-shadow-{migration}" for _, disk, _ in self._of(vm, migration))

    def _off(self, vm: VmSpec) -> Vm:
        found = self._state.vm(vm.ref)
        if found.on:
            raise Conflict(f"VM {vm.name} is on: its disks cannot be shadowed", vm=vm.ref)
        return found

    def _volume(self, vm: Vm, disk: str) -> tuple[str, str]:
        self._state.disk_of(vm, disk)
        return vm.volumes[disk]

    def _of(self, vm: VmSpec, migration: str) -> list[tuple[str, str, str]]:
        return [each for each in self._state.shadows if (each[0], each[2]) == (vm.ref, migration)]

    def _end(self, key: str, migration: str) -> None:
        held = self._state.writers.get(key)
        if held is None:
            return
        if held.migration != migration or not held.shadow:
            raise Conflict(f"session {key} is not a shadow session of migration {migration}", session=key)
        self._state.drop_writer(key)
