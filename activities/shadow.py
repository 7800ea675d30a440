"""Activities on shadows: the target's writes, kept at the source until confirm."""

from __future__ import annotations

from temporalio import activity

from whimbrel.contracts.activity_io import Done, WriterResult
from whimbrel.contracts.stream_io import MergedResult, ShadowInput
from whimbrel.ports.cloud import CloudRegistry


class ShadowActivities:
    """Opening, merging and dropping shadows."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="shadow.open", no_thread_cancel_exception=True)
    def open(self, wanted: ShadowInput) -> WriterResult:
        """Serve the overlays of a stopped VM's disks, made where they are missing."""
        shadows = self._clouds.get(wanted.cloud).shadows
        session = shadows.open(wanted.key, wanted.vm, wanted.disks, migration=wanted.migration)
        return WriterResult(session=session)

    @activity.defn(name="shadow.merge", no_thread_cancel_exception=True)
    def merge(self, wanted: ShadowInput) -> MergedResult:
        """Bring what the overlays hold into the disks; overlays that are not there are fine."""
        shadows = self._clouds.get(wanted.cloud).shadows
        merged = shadows.merge(wanted.key, wanted.vm, wanted.disks, migration=wanted.migration)
        return MergedResult(merged_bytes=merged)

    @activity.defn(name="shadow.drop", no_thread_cancel_exception=True)
    def drop(self, wanted: ShadowInput) -> Done:
        """Give the overlays up with what they hold."""
        shadows = self._clouds.get(wanted.cloud).shadows
        shadows.drop(wanted.key, wanted.vm, wanted.disks, migration=wanted.migration)
        return Done()
