"""Activities on volumes and the sessions that write them."""

from __future__ import annotations

from temporalio import activity

from whimbrel.contracts.activity_io import (
    CloseWriterInput,
    Done,
    EnsureVolumesInput,
    FreezeWriterInput,
    OpenDiskWriterInput,
    OpenWriterInput,
    PointResult,
    RemoveVolumesInput,
    ThawWriterInput,
    VolumesResult,
    WriterResult,
)
from whimbrel.model.vm import TargetDisk
from whimbrel.ports.cloud import CloudRegistry


class VolumeActivities:
    """Making, opening, closing and removing volumes."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="volume.ensure", no_thread_cancel_exception=True)
    def ensure(self, wanted: EnsureVolumesInput) -> VolumesResult:
        """Make the volumes of a VM's disks, or find those made before."""
        volumes = self._clouds.get(wanted.cloud).volumes
        made = [
            TargetDisk(spec=disk, volume=volumes.ensure_volume(wanted.volumes[disk.key])) for disk in wanted.spec.disks
        ]
        return VolumesResult(disks=tuple(made))

    @activity.defn(name="volume.remove", no_thread_cancel_exception=True)
    def remove(self, wanted: RemoveVolumesInput) -> Done:
        """Remove volumes that this migration made; those that are gone are fine."""
        volumes = self._clouds.get(wanted.cloud).volumes
        for name, pool in wanted.volumes:
            volumes.ensure_absent(name, pool, migration=wanted.migration)
        return Done(note=f"{len(wanted.volumes)} volumes")

    @activity.defn(name="volume.open_writer", no_thread_cancel_exception=True)
    def open_writer(self, wanted: OpenWriterInput) -> WriterResult:
        """Open the target volumes for writing, or adopt the session opened before."""
        volumes = {disk.spec.key: disk.volume for disk in wanted.disks}
        session = self._clouds.get(wanted.cloud).volumes.open_writer(wanted.key, volumes, migration=wanted.migration)
        return WriterResult(session=session)

    @activity.defn(name="volume.open_disk_writer", no_thread_cancel_exception=True)
    def open_disk_writer(self, wanted: OpenDiskWriterInput) -> WriterResult:
        """Open disks of a stopped VM for writing."""
        cloud = self._clouds.get(wanted.cloud)
        vm = cloud.compute.inspect(wanted.vm_ref)
        session = cloud.volumes.open_disk_writer(wanted.key, vm, wanted.disks, migration=wanted.migration)
        return WriterResult(session=session)

    @activity.defn(name="volume.close_writer", no_thread_cancel_exception=True)
    def close_writer(self, wanted: CloseWriterInput) -> Done:
        """Flush and close a session; one that is gone is fine."""
        self._clouds.get(wanted.cloud).volumes.close_writer(wanted.key)
        return Done()

    @activity.defn(name="volume.freeze_writer", no_thread_cancel_exception=True)
    def freeze_writer(self, wanted: FreezeWriterInput) -> PointResult:
        """Freeze what a session's volumes hold at this instant, while it goes on; or find what is frozen already."""
        volumes = self._clouds.get(wanted.cloud).volumes
        return PointResult(point=volumes.freeze_writer(wanted.key, wanted.point, migration=wanted.migration))

    @activity.defn(name="volume.thaw_writer", no_thread_cancel_exception=True)
    def thaw_writer(self, wanted: ThawWriterInput) -> Done:
        """Give a frozen state up; one that is gone is fine."""
        self._clouds.get(wanted.cloud).volumes.thaw_writer(wanted.key, wanted.point)
        return Done()
