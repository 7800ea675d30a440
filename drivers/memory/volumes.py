"""The volumes of the in-memory cloud and the mover's sessions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from drivers.memory.calls import CallLog, port_call
from drivers.memory.export import Budget, export_disk
from drivers.memory.serving import read_file
from drivers.memory.state import CloudState, Volume, VolumeId, Writer
from whimbrel.errors import Conflict, NotFound, QuotaExceeded, Unsupported
from whimbrel.model.facts import PoolFacts
from whimbrel.model.point import DiskPoint, OpenPoint, WriterSession
from whimbrel.model.vm import VmSpec, VolumeRef, VolumeSpec

PORT = "volumes"


class MemoryVolumes:
    """VolumePort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def pools(self) -> Sequence[PoolFacts]:
        """All pools; a volume takes its full size from its pool."""
        return read_pools(self._state)

    @port_call(PORT)
    def ensure_volume(self, spec: VolumeSpec) -> VolumeRef:
        """Make a zeroed volume or find it by name."""
        with self._state.lock:
            pool = self._state.pools.get(spec.pool)
            if pool is None:
                raise NotFound(f"no pool {spec.pool} on cloud {self._state.name}", pool=spec.pool)
            if spec.format not in self._state.capabilities.disk_formats:
                raise Unsupported(f"cloud {self._state.name} makes no volumes of format {spec.format}")
            volume = self._state.volumes.get((spec.pool, spec.name))
            if volume is None:
                free = pool.capacity_bytes - self._state.used_bytes(spec.pool)
                if spec.size_bytes > free:
                    raise QuotaExceeded(
                        f"pool {spec.pool} has no room for volume {spec.name}",
                        free_bytes=free,
                        wanted_bytes=spec.size_bytes,
                    )
                volume = self._state.add_volume(
                    spec.pool, spec.name, spec.size_bytes, spec.format, migration=spec.migration
                )
            found = (volume.disk.size_bytes, volume.disk.format, volume.migration)
            if found != (spec.size_bytes, spec.format, spec.migration):
                raise Conflict(
                    f"volume {spec.name} exists and is not the one asked for",
                    found=found,
                    wanted=(spec.size_bytes, spec.format, spec.migration),
                )
            return self._ref(volume)

    @port_call(PORT)
    def ensure_absent(self, name: str, pool: str, *, migration: str) -> None:
        """Remove. Raises Conflict if a VM or a session has it, or it is not the migration's."""
        with self._state.lock:
            volume = self._state.volumes.get((pool, name))
            if volume is None:
                return
            if volume.migration != migration:
                raise Conflict(f"volume {name} was not made by migration {migration}: it is left alone", volume=name)
            user = self._state.user_of(volume.key, running=False)
            if user is not None:
                raise Conflict(f"volume {name} is a disk of VM {user.spec.name}", volume=name, vm=user.spec.ref)
            writer = self._state.writer_on({volume.key})
            if writer is not None:
                raise Conflict(f"volume {name} is open in writer session {writer}", volume=name, writer=writer)
            self._state.remove_volume(volume.key)

    @port_call(PORT)
    def owned(self, migration: str) -> Sequence[str]:
        """Names of the migration's volumes in all pools."""
        with self._state.lock:
            return sorted(volume.name for volume in self._state.volumes.values() if volume.migration == migration)

    @port_call(PORT)
    def open_writer(self, key: str, volumes: Mapping[str, VolumeRef], *, migration: str) -> WriterSession:
        """Open volumes by disk key."""
        return self._open(key, {disk: (ref.pool, ref.name) for disk, ref in volumes.items()}, migration)

    @port_call(PORT)
    def open_disk_writer(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """Open disks of a VM that is off."""
        with self._state.lock:
            found = self._state.vm(vm.ref)
            for disk in disks:
                self._state.disk_of(found, disk)
            if found.point is not None:
                raise Conflict(f"point {found.point.key} reads the disks of VM {vm.name}", point=found.point.key)
            return self._open(key, {disk: found.volumes[disk] for disk in disks}, migration)

    @port_call(PORT)
    def close_writer(self, key: str) -> None:
        """Give the session up; its endpoints stop answering."""
        with self._state.lock:
            self._state.drop_writer(key)

    @port_call(PORT)
    def freeze_writer(self, key: str, point: str, *, migration: str) -> OpenPoint:
        """Freeze all volumes of a session at one instant."""
        with self._state.lock:
            writer = self._state.writers.get(key)
            if writer is None:
                raise NotFound(f"there is no writer session {key}", writer=key)
            if writer.migration != migration:
                raise Conflict(f"writer session {key} belongs to another migration", owner=writer.migration)
            if writer.frozen is not None:
                if writer.frozen.key != point:
                    raise Conflict(f"writer session {key} has point {writer.frozen.key} frozen", point=point)
                return writer.frozen
            disks = {disk: self._state.volumes[volume].disk for disk, volume in writer.volumes.items()}
            with ExitStack() as still:
                for found in disks.values():
                    still.enter_context(found.lock)
                held = {disk: found.snapshot() for disk, found in disks.items()}
                taken_at = self._state.now()
            serial = self._state.next_serial()
            writer.frozen = OpenPoint(
                key=point,
                vm_ref=key,
                kind="live",
                taken_at=taken_at,
                token=None,
                disks=tuple(
                    DiskPoint(
                        key=disk,
                        size_bytes=content.size_bytes,
                        endpoint=export_disk(f"{self._state.name}/{point}/{serial}/{disk}", content, writable=False),
                    )
                    for disk, content in held.items()
                ),
            )
            return writer.frozen

    @port_call(PORT)
    def thaw_writer(self, key: str, point: str) -> None:
        """Stop serving the frozen state."""
        with self._state.lock:
            writer = self._state.writers.get(key)
            if writer is not None and writer.frozen is not None and writer.frozen.key == point:
                self._state.thaw(writer)

    def _open(self, key: str, volumes: dict[str, VolumeId], migration: str) -> WriterSession:
        with self._state.lock:
            held = self._state.writers.get(key)
            if held is not None:
                if held.volumes != volumes or held.migration != migration:
                    raise Conflict(f"writer session {key} is open on other volumes", volumes=held.volumes)
                return held.session
            for volume in volumes.values():
                self._refuse_if_used(volume)
            for volume in volumes.values():
                self._take_file(volume)
            serial = self._state.next_serial()
            session = WriterSession(
                key=key,
                disks=tuple(self._export(f"{key}/{serial}", disk, volume) for disk, volume in volumes.items()),
            )
            self._state.writers[key] = Writer(session, volumes, migration)
            return session

    def _take_file(self, volume: VolumeId) -> None:
        """What a streaming server has left in the volume's file is what the volume holds."""
        found = self._state.volumes[volume]
        if found.file is not None:
            read_file(found.file, found.disk)
            found.file.unlink()
            found.file = None

    def _refuse_if_used(self, volume: VolumeId) -> None:
        if volume not in self._state.volumes:
            raise NotFound(f"no volume {volume[1]} in pool {volume[0]} on cloud {self._state.name}", volume=volume[1])
        user = self._state.user_of(volume, running=True)
        if user is not None:
            raise Conflict(f"volume {volume[1]} is in use: VM {user.spec.name} is {user.power}", vm=user.spec.ref)
        writer = self._state.writer_on({volume})
        if writer is not None:
            raise Conflict(f"volume {volume[1]} is open in writer session {writer}", writer=writer)

    def _export(self, session: str, disk: str, volume: VolumeId) -> DiskPoint:
        found = self._state.volumes[volume].disk
        budget = self._state.write_budgets.setdefault(volume[1], Budget())
        endpoint = export_disk(f"{self._state.name}/{session}/{disk}", found, writable=True, budget=budget)
        return DiskPoint(key=disk, size_bytes=found.size_bytes, endpoint=endpoint)

    def _ref(self, volume: Volume) -> VolumeRef:
        return VolumeRef(
            name=volume.name,
            pool=volume.pool,
            size_bytes=volume.disk.size_bytes,
            format=volume.disk.format,
            location=self._state.location(volume.key),
        )


def read_pools(state: CloudState) -> list[PoolFacts]:
    """All pools with their room now."""
    with state.lock:
        return [
            PoolFacts(
                name=pool.name,
                free_bytes=max(0, pool.capacity_bytes - state.used_bytes(pool.name)),
                capacity_bytes=pool.capacity_bytes,
                active=pool.active,
                sector_bytes=512,
            )
            for pool in state.pools.values()
        ]
