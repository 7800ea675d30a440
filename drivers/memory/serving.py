"""VMs of the in-memory cloud on served disks: a volume gets a real file, which a real streaming server can fill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drivers.memory.calls import CallLog, port_call
from drivers.memory.disk import GRAIN_BYTES, Disk
from drivers.memory.imports import detach, imports
from drivers.memory.state import CloudState, Vm
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.model.vm import Power, TargetDisk, VolumeRef

PORT = "serving"


class MemoryServing:
    """ServingPort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def local_path(self, volume: VolumeRef) -> str:
        """A temporary file with the volume's bytes; what is written to it counts after ``switch_disks``."""
        with self._state.lock:
            found = self._state.volumes.get((volume.pool, volume.name))
            if found is None:
                raise NotFound(f"no volume {volume.name} in pool {volume.pool} on cloud {self._state.name}")
            if found.disk.format != "raw":
                raise Unsupported(f"volume {volume.name} is {found.disk.format}: only raw volumes are plain files")
            if found.file is None:
                path = self._state.new_file()
                _write_file(path, found.disk)
                found.file = path
            return str(found.file)

    @port_call(PORT)
    def client(self) -> tuple[int, int] | None:
        """This process itself."""
        return os.getuid(), os.getgid()

    @port_call(PORT)
    def switch_disks(self, ref: str, disks: Sequence[TargetDisk], *, migration: str) -> None:
        """Take the bytes of the volumes' files over, and let the VM run on the volumes."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.made_by != migration or vm.handed_over:
                raise Conflict(f"VM {vm.spec.name} is not tagged as made by migration {migration}", vm=ref)
            for disk in disks:
                self._check(vm, disk)
            for disk in disks:
                volume = self._state.volumes[vm.volumes[disk.spec.key]]
                detach(volume.disk)
                if disk.spec.key in vm.served:
                    if volume.file is not None:
                        read_file(volume.file, volume.disk)
                    del vm.served[disk.spec.key]

    @port_call(PORT)
    def stalled(self, ref: str) -> bool:
        """Whether the scenario paused it, as a hypervisor does on an I/O error."""
        with self._state.lock:
            vm = self._state.vm(ref)
            return bool(vm.served) and vm.power is Power.PAUSED

    @port_call(PORT)
    def served_disks(self, ref: str) -> Sequence[str]:
        """Keys of the VM's disks that are served, or still import."""
        with self._state.lock:
            vm = self._state.vm(ref)
            return sorted({*vm.served, *(key for key in vm.volumes if imports(self._state.disk_of(vm, key)))})

    def _check(self, vm: Vm, disk: TargetDisk) -> None:
        self._state.disk_of(vm, disk.spec.key)
        if vm.volumes[disk.spec.key] != (disk.volume.pool, disk.volume.name):
            raise Conflict(f"disk {disk.spec.key} of VM {vm.spec.name} was not made for volume {disk.volume.name}")


def _write_file(path: Path, disk: Disk) -> None:
    with path.open("r+b") as file:
        file.truncate(disk.size_bytes)
        for number in disk.allocated():
            start = number * GRAIN_BYTES
            file.seek(start)
            file.write(disk.read(start, min(GRAIN_BYTES, disk.size_bytes - start)))


def read_file(path: Path, disk: Disk) -> None:
    """Take the bytes of a volume's file over."""
    with path.open("rb") as file:
        for start in range(0, disk.size_bytes, GRAIN_BYTES):
            content = file.read(min(GRAIN_BYTES, disk.size_bytes - start))
            if content != disk.read(start, len(content)):
                disk.write(start, content)
