"""Handing volumes over between in-memory clouds that share a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivers.memory.calls import CallLog, port_call
from drivers.memory.compute import read_disk, read_vm
from drivers.memory.state import CloudState, Held, Vm, VolumeId
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.handover import Hold, StoredDisk, StoredImage
from whimbrel.model.vm import TargetDisk, VmSpec, VolumeRef

PORT = "handover"
MARKER_BYTES = 4096


class MemoryHandover:
    """HandoverPort on a cloud's state. A handle is a volume's name; its identity is the very Python object."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def write_marker(self, pool: str, name: str, text: str) -> None:
        """A small volume that holds the text."""
        with self._state.lock:
            self._need_pool(pool)
            volume = self._state.volumes.get((pool, name))
            if volume is None:
                volume = self._state.add_volume(pool, name, MARKER_BYTES, "raw", name.rpartition("-")[2])
            volume.disk.write(0, text.encode().ljust(MARKER_BYTES, b"\0"))

    @port_call(PORT)
    def read_marker(self, pool: str, name: str) -> str | None:
        """The text, if this cloud sees the volume."""
        with self._state.lock:
            self._need_pool(pool)
            volume = self._state.volumes.get((pool, name))
            return volume.disk.read(0, MARKER_BYTES).rstrip(b"\0").decode() if volume is not None else None

    @port_call(PORT)
    def remove_marker(self, pool: str, name: str) -> None:
        """Remove the volume."""
        with self._state.lock:
            if (pool, name) in self._state.volumes:
                self._state.remove_volume((pool, name))

    @port_call(PORT)
    def stored(self, vm: VmSpec) -> Sequence[StoredDisk]:
        """Volumes of the VM, or those that were taken from it."""
        with self._state.lock:
            return self._stored(self._state.vm(vm.ref))

    @port_call(PORT)
    def look(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[TargetDisk]:
        """The volumes of the mapped pools."""
        with self._state.lock:
            return [self._look(disk, pools) for disk in disks]

    @port_call(PORT)
    def openers(
        self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str, locks: bool = True
    ) -> Sequence[str]:
        """VMs of this cloud and writer sessions; of other clouds too where volumes are locked."""
        del migration
        with self._state.lock:
            found = []
            for volume in self._volumes(disks, pools):
                on_here = [vm for vm in self._state.vms.values() if vm.on and volume in vm.volumes.values()]
                seen = self._state.openers(volume) if locks and self._state.image_locks else on_here
                found += [f"VM {vm.spec.name}" for vm in seen]
                writer = self._state.writer_on({volume})
                found += [f"writer session {writer}"] if writer is not None else []
            return sorted(set(found))

    @port_call(PORT)
    def users(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> Sequence[str]:
        """VMs of this cloud that are defined with one of the volumes."""
        with self._state.lock:
            wanted = set(self._volumes(disks, pools))
            return sorted(vm.spec.name for vm in self._state.vms.values() if wanted & set(vm.volumes.values()))

    @port_call(PORT)
    def release(self, vm: VmSpec, *, migration: str, turn: int) -> Sequence[StoredDisk]:
        """Take the volumes from the VM and hold them."""
        with self._state.lock:
            found = self._state.vm(vm.ref)
            if found.held is not None and (found.held.migration != migration or found.held.turn > turn):
                raise Conflict(f"the disks of VM {vm.name} were taken by migration {found.held.migration}", vm=vm.ref)
            if found.on:
                raise Conflict(f"VM {vm.name} is {found.power}: its disks cannot be released", vm=vm.ref)
            if found.point is not None or self._state.writer_on(set(found.volumes.values())) is not None:
                raise Conflict(f"a session has the disks of VM {vm.name} open", vm=vm.ref)
            if found.held is None:
                found.held = Held(migration, turn, found.spec.disks, dict(found.volumes))
                found.spec = found.spec.model_copy(update={"disks": ()})
                found.volumes = {}
            found.held.turn = turn
            return self._stored(found)

    @port_call(PORT)
    def held(self, ref: str) -> Hold | None:
        """The hold, if there is one."""
        with self._state.lock:
            held = self._state.vm(ref).held
            return Hold(migration=held.migration, turn=held.turn) if held is not None else None

    @port_call(PORT)
    def adopt(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> Sequence[TargetDisk]:
        """Look, and refuse volumes that a VM here has or that are others by identity."""
        with self._state.lock:
            for disk, volume in zip(disks, self._volumes(disks, pools), strict=True):
                user = self._state.user_of(volume, running=False)
                if user is not None and user.made_by != migration:
                    raise Conflict(f"volume {volume[1]} is a disk of VM {user.spec.name}", vm=user.spec.ref)
                if self._identity(volume) != disk.image.identity:
                    raise Conflict(f"volume {volume[1]} is not the one that was released", volume=volume[1])
            return [self._look(disk, pools) for disk in disks]

    @port_call(PORT)
    def abandon(self, disks: Sequence[StoredDisk], pools: Mapping[str, str], *, migration: str) -> None:
        """Nothing is left by an adoption here."""

    @port_call(PORT)
    def reclaim(self, vm: VmSpec, *, migration: str, turn: int) -> VmSpec:
        """Give the volumes back."""
        with self._state.lock:
            found = self._state.vm(vm.ref)
            if found.held is not None:
                if found.held.migration != migration or found.held.turn > turn:
                    raise Conflict(
                        f"the disks of VM {vm.name} were taken by migration {found.held.migration}, "
                        f"turn {found.held.turn}",
                        vm=vm.ref,
                    )
                found.spec = found.spec.model_copy(update={"disks": found.held.disks})
                found.volumes, found.held = found.held.volumes, None
            return read_vm(self._state, found)

    @port_call(PORT)
    def forget_vm(self, ref: str, *, migration: str) -> None:
        """Undefine the shell."""
        with self._state.lock:
            found = self._state.vms.get(ref)
            if found is None:
                return
            if found.held is None or found.held.migration != migration:
                raise Conflict(f"VM {found.spec.name} was not released by migration {migration}", vm=ref)
            del self._state.vms[ref]

    @port_call(PORT)
    def released(self, migration: str) -> Sequence[str]:
        """Names of VMs that are held by the migration."""
        with self._state.lock:
            return sorted(
                vm.spec.name
                for vm in self._state.vms.values()
                if vm.held is not None and vm.held.migration == migration
            )

    def _need_pool(self, pool: str) -> None:
        if pool not in self._state.pools:
            raise NotFound(f"no pool {pool} on cloud {self._state.name}", pool=pool)

    def _identity(self, volume: VolumeId) -> str:
        return f"{id(self._state.volumes[volume].disk):x}"

    def _stored(self, vm: Vm) -> list[StoredDisk]:
        volumes = vm.held.volumes if vm.held is not None else vm.volumes
        specs = {disk.key: disk for disk in (vm.held.disks if vm.held is not None else vm.spec.disks)}
        found = []
        for key, volume in volumes.items():
            disk = self._state.volumes[volume].disk
            image = StoredImage(
                pool=volume[0],
                handle=volume[1],
                size_bytes=disk.size_bytes,
                format=disk.format,
                identity=self._identity(volume),
            )
            found.append(StoredDisk(spec=read_disk(self._state, volume, specs[key]), image=image))
        return found

    def _volumes(self, disks: Sequence[StoredDisk], pools: Mapping[str, str]) -> list[VolumeId]:
        """Raises NotFound."""
        found = []
        for disk in disks:
            pool = disk.image.pool or ""
            volume = (pools.get(pool, pool), disk.image.handle)
            if volume not in self._state.volumes:
                raise NotFound(f"no volume {volume[1]} in pool {volume[0]} on cloud {self._state.name}")
            found.append(volume)
        return found

    def _look(self, disk: StoredDisk, pools: Mapping[str, str]) -> TargetDisk:
        (volume,) = self._volumes([disk], pools)
        found = self._state.volumes[volume].disk
        if (found.size_bytes, found.format) != (disk.image.size_bytes, disk.image.format):
            raise Conflict(f"volume {volume[1]} is another one here", found=f"{found.size_bytes} {found.format}")
        return TargetDisk(
            spec=disk.spec,
            volume=VolumeRef(
                name=volume[1],
                pool=volume[0],
                size_bytes=found.size_bytes,
                format=found.format,
                location=self._state.location(volume),
            ),
        )
