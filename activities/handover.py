"""Activities that hand a VM's disks from one cloud to another; each looks at both sides before it changes one."""

from __future__ import annotations

from contextlib import AbstractContextManager

from temporalio import activity

from whimbrel.contracts.activity_io import Done, VmInput, VmResult, VolumesResult
from whimbrel.contracts.handover_io import (
    DefineInput,
    HandoverInput,
    ReclaimedResult,
    RemoveMarkersInput,
    SameVolumesInput,
    SameVolumesResult,
    StoredResult,
)
from whimbrel.errors import Conflict, DataMismatch, NotFound, NotReady, PreconditionFailed, Unsupported
from whimbrel.exclusion import alone
from whimbrel.model.handover import Hold
from whimbrel.model.progress import VerifyRecord
from whimbrel.ports.cloud import Cloud, CloudRegistry
from whimbrel.ports.handover import HandoverPort


def handover_of(cloud: Cloud) -> HandoverPort:
    """The port of a cloud that can hand disks over. Raises Unsupported."""
    if cloud.handover is None:
        raise Unsupported(f"{cloud.name} cannot hand disks over", action="choose another mode for this VM")
    return cloud.handover


TURN_WAIT_S = 60.0


class HandoverActivities:
    """Releasing, adopting, giving back."""

    def __init__(self, clouds: CloudRegistry, *, turn_wait_s: float = TURN_WAIT_S) -> None:
        self._clouds = clouds
        self._turn_wait_s = turn_wait_s

    def _alone(self, wanted: HandoverInput) -> AbstractContextManager[None]:
        """Looking and acting are one: an earlier attempt that still runs on this machine is waited for."""
        return alone("handover", wanted.migration, wait_s=self._turn_wait_s)

    def _sides(self, wanted: HandoverInput) -> tuple[HandoverPort, HandoverPort]:
        return handover_of(self._clouds.get(wanted.source)), handover_of(self._clouds.get(wanted.target))

    def _openers(self, wanted: HandoverInput) -> list[str]:
        """Who has an image open, both sides asked."""
        source, target = self._sides(wanted)
        here = source.openers(wanted.disks, {}, migration=wanted.migration)
        there = target.openers(wanted.disks, wanted.pools, migration=wanted.migration)
        seen = [(wanted.source, who) for who in here] + [(wanted.target, who) for who in there]
        return [f"{who} (seen by {cloud})" for cloud, who in seen]

    def _still_released(self, wanted: HandoverInput) -> None:
        source, _ = self._sides(wanted)
        held = source.held(wanted.spec.ref)
        if held != Hold(migration=wanted.migration, turn=wanted.turn):
            raise PreconditionFailed(
                f"{wanted.spec.name} does not have its disks released in turn {wanted.turn}",
                action="nothing: an attempt that came too late has done nothing",
                found=held,
            )

    @activity.defn(name="handover.look", no_thread_cancel_exception=True)
    def look(self, wanted: HandoverInput) -> StoredResult:
        """Where the disks are, and that the target sees them there."""
        source, target = self._sides(wanted)
        disks = tuple(source.stored(wanted.spec))
        target.look(disks, wanted.pools)
        return StoredResult(disks=disks)

    @activity.defn(name="handover.release", no_thread_cancel_exception=True)
    def release(self, wanted: HandoverInput) -> StoredResult:
        """Take the disks from the source, and read back that no definition there names them."""
        with self._alone(wanted):
            source, _ = self._sides(wanted)
            disks = tuple(source.release(wanted.spec, migration=wanted.migration, turn=wanted.turn))
            self._still_released(wanted)
            users = source.users(disks, {})
            if users:
                raise Conflict(
                    f"disks of {wanted.spec.name} were released, but {users[0]} on {wanted.source} has them too",
                    action=f"take the disks from {users[0]}, or leave this VM where it is",
                )
            return StoredResult(disks=disks)

    @activity.defn(name="handover.adopt", no_thread_cancel_exception=True)
    def adopt(self, wanted: HandoverInput) -> VolumesResult:
        """Released there, open nowhere: then the target takes the disks as they are."""
        with self._alone(wanted):
            _, target = self._sides(wanted)
            self._still_released(wanted)
            openers = self._openers(wanted)
            if openers:
                raise Conflict(
                    f"disks of {wanted.spec.name} are open: {'; '.join(openers)}",
                    action="end what has them open, then try again",
                )
            return VolumesResult(disks=tuple(target.adopt(wanted.disks, wanted.pools, migration=wanted.migration)))

    @activity.defn(name="handover.define", no_thread_cancel_exception=True)
    def define(self, wanted: DefineInput) -> VmResult:
        """Define the VM at the target. The release is looked at before and after.

        An attempt that comes too late, when the source has its disks again, takes its VM away again.
        """
        with self._alone(wanted.handover):
            handover, cloud = wanted.handover, self._clouds.get(wanted.handover.target)
            self._still_released(handover)
            vm = cloud.compute.ensure_vm(wanted.vm)
            try:
                self._still_released(handover)
            except (PreconditionFailed, NotFound):
                cloud.compute.ensure_absent(vm.ref, migration=handover.migration)
                raise
            mark = cloud.guest.console_tail(vm.ref, 256) or ""
            return VmResult(vm=vm, capabilities=cloud.capabilities(), console_mark=mark)

    @activity.defn(name="handover.verify", no_thread_cancel_exception=True)
    def verify(self, wanted: SameVolumesInput) -> SameVolumesResult:
        """The target has exactly the volumes that the source gave, and the source has none. Raises DataMismatch."""
        handover = wanted.handover
        _, target = self._sides(handover)
        self._still_released(handover)
        seen = {disk.spec.key: disk.volume for disk in target.look(handover.disks, handover.pools)}
        vm = self._clouds.get(handover.target).compute.inspect(wanted.target_ref)
        has = {disk.key: disk.location for disk in vm.disks}
        given = {disk.spec.key: disk.image for disk in handover.disks}
        records = []
        for disk in wanted.disks:
            key = disk.spec.key
            if not has.get(key) == disk.volume.location == seen[key].location:
                raise DataMismatch(
                    f"disk {key} of the target is {has.get(key)}, not {disk.volume.location}",
                    action="roll back: the source gets its volumes back",
                )
            records.append(
                VerifyRecord(
                    disk=key,
                    mode="same-volume",
                    compared_bytes=0,
                    skipped_zero_bytes=0,
                    mismatches=0,
                    digest=given[key].identity,
                )
            )
        return SameVolumesResult(records=tuple(records))

    @activity.defn(name="handover.abandon", no_thread_cancel_exception=True)
    def abandon(self, wanted: HandoverInput) -> Done:
        """Undo an adoption; data is kept."""
        _, target = self._sides(wanted)
        target.abandon(wanted.disks, wanted.pools, migration=wanted.migration)
        return Done()

    @activity.defn(name="handover.reclaim", no_thread_cancel_exception=True)
    def reclaim(self, wanted: HandoverInput) -> ReclaimedResult:
        """Give the source its disks back, once nobody at the target has them, defined or open."""
        with self._alone(wanted):
            source, target = self._sides(wanted)
            held = source.held(wanted.spec.ref)
            if held is not None and held.migration != wanted.migration:
                return ReclaimedResult(ours=False, note=f"migration {held.migration} has the disks")
            if held is not None:
                users = target.users(wanted.disks, wanted.pools)
                if users:
                    raise Conflict(
                        f"disks of {wanted.spec.name} belong to VM {users[0]} on {wanted.target} too",
                        action=f"remove VM {users[0]} there, keeping its disks; then resume",
                    )
                openers = self._openers(wanted)
                if openers:
                    raise NotReady(f"disks of {wanted.spec.name} are still open: {'; '.join(openers)}")
            source.reclaim(wanted.spec, migration=wanted.migration, turn=wanted.turn)
            return ReclaimedResult(ours=True)

    @activity.defn(name="handover.forget_source", no_thread_cancel_exception=True)
    def forget_source(self, wanted: VmInput) -> Done:
        """Remove the diskless shell of the source."""
        handover_of(self._clouds.get(wanted.cloud)).forget_vm(wanted.ref, migration=wanted.migration)
        return Done()

    @activity.defn(name="handover.remove_markers", no_thread_cancel_exception=True)
    def remove_markers(self, wanted: RemoveMarkersInput) -> Done:
        """Remove the notes of a precheck that was killed."""
        cloud = self._clouds.get(wanted.cloud)
        for pool in cloud.volumes.pools() if cloud.handover is not None else ():
            handover_of(cloud).remove_marker(pool.name, wanted.name)
        return Done()
