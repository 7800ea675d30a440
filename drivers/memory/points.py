"""Points in time of the in-memory cloud: one open point for each VM, bitmaps on its qcow2 disks."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.memory.calls import CallLog, port_call
from drivers.memory.export import export_disk, withdraw
from drivers.memory.state import CloudState, Vm
from whimbrel.errors import BaseLost, Conflict, InvalidPlan, Unsupported
from whimbrel.model.naming import owns_point
from whimbrel.model.point import DiskPoint, OpenPoint, PointKind
from whimbrel.model.vm import Power

PORT = "points"
KINDS: dict[Power, PointKind] = {
    Power.RUNNING: "live",
    Power.PAUSED: "live",
    Power.OFF: "cold",
    Power.CRASHED: "cold",
}


class MemoryPoints:
    """PointInTimePort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def open(
        self,
        ref: str,
        disks: Sequence[str],
        *,
        key: str,
        since: str | None = None,
        migration: str,
        track: bool = True,
        resting: bool = False,
    ) -> OpenPoint:
        """Freeze all ``disks`` at one instant, or return the point that is open by this key."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if vm.point is not None and vm.point.key == key and vm.point_migration == migration:
                return vm.point
            self._refuse(vm, disks, key, migration)
            if since is not None:
                self._refuse_lost_base(vm, disks, since)
            resting = resting and self._state.capabilities.rests
            trackable = any(self._state.disk_of(vm, disk).trackable for disk in disks)
            token = key if track and trackable and not resting else None
            serial = self._state.next_serial()
            point = OpenPoint(
                key=key,
                vm_ref=ref,
                kind="cold" if resting else KINDS[vm.power],
                taken_at=self._state.now(),
                token=token,
                since=since,
                disks=tuple(self._freeze(vm, disk, f"{key}/{serial}", since, token) for disk in disks),
            )
            if token is not None:
                vm.tokens.add(token)
            vm.point, vm.point_migration = point, migration
            if resting:
                vm.rest = lambda: self._rest(vm, point, f"{key}/{serial}", since)
            return point

    @port_call(PORT)
    def close(self, ref: str, key: str, *, migration: str) -> None:
        """End reading; the token stays."""
        with self._state.lock:
            vm = self._state.vms.get(ref)
            if vm is not None and vm.point is not None and (vm.point.key, vm.point_migration) == (key, migration):
                self._state.drop_point(vm)

    @port_call(PORT)
    def forget(self, ref: str, *, migration: str, keep: Sequence[str] = ()) -> None:
        """Remove the migration's tokens but ``keep``, from metadata and disks."""
        with self._state.lock:
            vm = self._state.vms.get(ref)
            if vm is None:
                return
            for token in self._tokens(vm, migration) - set(keep):
                vm.tokens.discard(token)
                for disk in vm.volumes:
                    self._state.disk_of(vm, disk).drop(token)

    @port_call(PORT)
    def owned(self, ref: str, migration: str) -> Sequence[str]:
        """Tokens and open points of the migration. Raises NotFound."""
        with self._state.lock:
            vm = self._state.vm(ref)
            open_point = {vm.point.key} if vm.point is not None and vm.point_migration == migration else set()
            return sorted(self._tokens(vm, migration) | open_point)

    def _refuse(self, vm: Vm, disks: Sequence[str], key: str, migration: str) -> None:
        for disk in disks:
            self._state.disk_of(vm, disk)
        if not owns_point(key, migration):
            raise InvalidPlan(f"point key {key} does not carry migration {migration}, so no clean-up would find it")
        if vm.power not in KINDS:
            raise Unsupported(f"VM {vm.spec.name} is {vm.power}: its disks are not all in one place", vm=vm.spec.ref)
        if vm.served:
            raise Unsupported(f"VM {vm.spec.name} runs on a served disk: its bytes are elsewhere", vm=vm.spec.ref)
        if vm.foreign_job is not None:
            raise Conflict(f"VM {vm.spec.name} is busy with job {vm.foreign_job} of somebody else", job=vm.foreign_job)
        if vm.point is not None:
            raise Conflict(f"VM {vm.spec.name} has point {vm.point.key} open", point=vm.point.key)
        writer = self._state.writer_on(set(vm.volumes.values()), shadows=False)
        announced = self._state.capabilities.announces and vm.made_by == migration
        if writer is not None and not (announced and owns_point(writer, migration)):
            raise Conflict(f"writer session {writer} holds a disk of VM {vm.spec.name}", writer=writer)

    def _refuse_lost_base(self, vm: Vm, disks: Sequence[str], since: str) -> None:
        if since not in vm.tokens:
            raise BaseLost(f"VM {vm.spec.name} has no token {since}", token=since)
        for disk in disks:
            found = self._state.disk_of(vm, disk)
            if found.trackable and not found.answers(since):
                raise BaseLost(f"disk {disk} of VM {vm.spec.name} cannot answer since {since}", token=since, disk=disk)

    def _rest(self, vm: Vm, point: OpenPoint, serial: str, since: str | None) -> None:
        """The same endpoints, with what is on the disks now."""
        for disk in point.disks:
            withdraw(disk.endpoint)
            assert self._freeze(vm, disk.key, serial, since, None).endpoint == disk.endpoint

    def _freeze(self, vm: Vm, disk: str, serial: str, since: str | None, token: str | None) -> DiskPoint:
        found = self._state.disk_of(vm, disk)
        tracked = since is not None and found.trackable
        frozen = found.freeze(since=since if tracked else None, token=token if found.trackable else None)
        endpoint = export_disk(f"{self._state.name}/{vm.spec.ref}/{serial}/{disk}", frozen, writable=False)
        return DiskPoint(key=disk, size_bytes=found.size_bytes, endpoint=endpoint, tracked=tracked)

    def _tokens(self, vm: Vm, migration: str) -> set[str]:
        on_disks = {token for disk in vm.volumes for token in self._state.disk_of(vm, disk).tokens()}
        return {token for token in vm.tokens | on_disks if owns_point(token, migration)}
