"""Activity that puts a VM from the exports that serve its disks onto its own volumes."""

from __future__ import annotations

from temporalio import activity

from whimbrel.contracts.activity_io import Done
from whimbrel.contracts.stream_io import SwitchInput
from whimbrel.errors import NotReady
from whimbrel.ports.cloud import CloudRegistry


class ServingActivities:
    """The hot switch."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="compute.switch_disks", no_thread_cancel_exception=True)
    def switch_disks(self, wanted: SwitchInput) -> Done:
        """Switch, and read back that no disk is served any more, live and in the definition."""
        serving = self._clouds.get(wanted.cloud).serving
        serving.switch_disks(wanted.ref, wanted.disks, migration=wanted.migration)
        left = serving.served_disks(wanted.ref)
        if left:
            raise NotReady(f"disks {', '.join(left)} are still served by the stream", vm=wanted.ref)
        return Done(note=f"{len(wanted.disks)} disks")
