"""Activities on VMs."""

from __future__ import annotations

from temporalio import activity

from activities.patience import watched
from whimbrel.contracts.activity_io import (
    AnnouncedResult,
    AutostartInput,
    Done,
    EnsureVmInput,
    FenceInput,
    PowerResult,
    RestoredResult,
    RestoreSourceInput,
    StartInput,
    VmInput,
    VmResult,
)
from whimbrel.errors import Conflict, NotFound, NotReady
from whimbrel.model.vm import Power
from whimbrel.ports.cloud import CloudRegistry

CONSOLE_MARK_BYTES = 256


class ComputeActivities:
    """Looking at VMs, powering them, defining and removing them."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="compute.inspect", no_thread_cancel_exception=True)
    def inspect(self, wanted: VmInput) -> VmResult:
        """Read a VM by ref or name, with what its cloud can do."""
        cloud = self._clouds.get(wanted.cloud)
        return VmResult(vm=cloud.compute.inspect(wanted.ref), capabilities=cloud.capabilities())

    @activity.defn(name="compute.power", no_thread_cancel_exception=True)
    def power(self, wanted: VmInput) -> PowerResult:
        """Read a VM's power state."""
        cloud = self._clouds.get(wanted.cloud)
        return PowerResult(power=cloud.compute.power(wanted.ref), fences=cloud.capabilities().fences)

    @activity.defn(name="compute.start", no_thread_cancel_exception=True)
    def start(self, wanted: StartInput) -> PowerResult:
        """Power on, and read back that it is."""
        compute = self._clouds.get(wanted.cloud).compute
        compute.start(wanted.ref, paused=wanted.paused)
        state = compute.power(wanted.ref)
        if state not in {Power.RUNNING, Power.PAUSED}:
            raise NotReady(f"the VM was started and is {state}", vm=wanted.ref)
        return PowerResult(power=state)

    @activity.defn(name="compute.resume", no_thread_cancel_exception=True)
    def resume(self, wanted: VmInput) -> PowerResult:
        """Let a paused VM run, and read back that it does."""
        compute = self._clouds.get(wanted.cloud).compute
        compute.resume(wanted.ref)
        state = compute.power(wanted.ref)
        if state is not Power.RUNNING:
            raise NotReady(f"the VM was resumed and is {state}", vm=wanted.ref)
        return PowerResult(power=state)

    @activity.defn(name="compute.request_stop", no_thread_cancel_exception=True)
    def request_stop(self, wanted: VmInput) -> Done:
        """Ask the guest to shut down."""
        self._clouds.get(wanted.cloud).compute.request_stop(wanted.ref)
        return Done()

    @activity.defn(name="compute.wait_off", no_thread_cancel_exception=True)
    def wait_off(self, wanted: VmInput) -> PowerResult:
        """Succeed once the VM is off; until then NotReady, which Temporal tries again."""
        compute = self._clouds.get(wanted.cloud).compute

        def look() -> PowerResult:
            state = compute.power(wanted.ref)
            if state not in {Power.OFF, Power.CRASHED}:
                raise NotReady(f"the guest is still {state}", vm=wanted.ref)
            return PowerResult(power=state)

        return watched(look)

    @activity.defn(name="compute.force_off", no_thread_cancel_exception=True)
    def force_off(self, wanted: VmInput) -> PowerResult:
        """Take the power away, and read back that it is gone."""
        compute = self._clouds.get(wanted.cloud).compute
        compute.force_off(wanted.ref)
        state = compute.power(wanted.ref)
        if state not in {Power.OFF, Power.CRASHED}:
            raise NotReady(f"the VM was forced off and is {state}", vm=wanted.ref)
        return PowerResult(power=state)

    @activity.defn(name="compute.set_autostart", no_thread_cancel_exception=True)
    def set_autostart(self, wanted: AutostartInput) -> Done:
        """Set whether the VM starts with its host."""
        self._clouds.get(wanted.cloud).compute.set_autostart(wanted.ref, enabled=wanted.enabled)
        return Done()

    @activity.defn(name="compute.fence", no_thread_cancel_exception=True)
    def fence(self, wanted: FenceInput) -> PowerResult:
        """Keep the owner of a VM from starting it, and read back that it is off, unless it is still stopping."""
        compute = self._clouds.get(wanted.cloud).compute
        compute.fence(wanted.ref, migration=wanted.migration)
        state = compute.power(wanted.ref)
        if not wanted.stopping and state not in {Power.OFF, Power.CRASHED}:
            raise Conflict(
                f"the VM was started at the last moment and is {state}",
                action="leave it off during the cutover; then cutover again",
                vm=wanted.ref,
            )
        return PowerResult(power=state, fences=True)

    @activity.defn(name="compute.unfence", no_thread_cancel_exception=True)
    def unfence(self, wanted: VmInput) -> Done:
        """Let the owner start the VM again."""
        self._clouds.get(wanted.cloud).compute.unfence(wanted.ref, migration=wanted.migration)
        return Done()

    @activity.defn(name="compute.announce", no_thread_cancel_exception=True)
    def announce(self, wanted: EnsureVmInput) -> AnnouncedResult:
        """The same as ``ensure_vm`` where that may come before the volumes are finished; elsewhere nothing."""
        if not self._clouds.get(wanted.cloud).capabilities().announces:
            return AnnouncedResult()
        return AnnouncedResult(made=self.ensure_vm(wanted))

    @activity.defn(name="compute.ensure_vm", no_thread_cancel_exception=True)
    def ensure_vm(self, wanted: EnsureVmInput) -> VmResult:
        """Define the VM at the target, or find the one defined before."""
        cloud = self._clouds.get(wanted.cloud)
        vm = cloud.compute.ensure_vm(wanted.vm)
        mark = cloud.guest.console_tail(vm.ref, CONSOLE_MARK_BYTES) or ""
        return VmResult(vm=vm, capabilities=cloud.capabilities(), console_mark=mark)

    @activity.defn(name="compute.ensure_absent", no_thread_cancel_exception=True)
    def ensure_absent(self, wanted: VmInput) -> Done:
        """Remove a VM that this migration made; the ref may be its name. One that is not there is fine.

        The driver is asked all the same: an attempt to define it may have died after it had reserved something.
        """
        compute = self._clouds.get(wanted.cloud).compute
        try:
            ref, note = compute.inspect(wanted.ref).ref, ""
        except NotFound:
            ref, note = wanted.ref, "not there"
        compute.ensure_absent(ref, migration=wanted.migration)
        return Done(note=note)

    @activity.defn(name="compute.release", no_thread_cancel_exception=True)
    def release(self, wanted: VmInput) -> Done:
        """Hand a rebuilt VM over: it is no longer the migration's to remove."""
        self._clouds.get(wanted.cloud).compute.release_tag(wanted.ref, migration=wanted.migration)
        return Done()

    @activity.defn(name="compute.restore_source", no_thread_cancel_exception=True)
    def restore_source(self, wanted: RestoreSourceInput) -> RestoredResult:
        """Give the source back: its disks released, powered as before, definition compared with the one before."""
        cloud = self._clouds.get(wanted.cloud)
        ref = wanted.spec.ref
        for key in cloud.points.owned(ref, wanted.migration) if wanted.points else ():
            cloud.points.close(ref, key, migration=wanted.migration)
        cloud.compute.unfence(ref, migration=wanted.migration)
        cloud.compute.set_autostart(ref, enabled=wanted.spec.autostart)
        if wanted.spec.power is Power.RUNNING:
            cloud.compute.start(ref)
            cloud.compute.resume(ref)
        elif wanted.spec.power is Power.PAUSED:
            cloud.compute.start(ref, paused=cloud.capabilities().start_paused)
        now = cloud.compute.inspect(ref)
        if wanted.spec.power is Power.RUNNING and now.power is not Power.RUNNING:
            raise NotReady(f"the source was started and is {now.power}", vm=now.name)
        same = now.definition_digest == wanted.spec.definition_digest
        note = "" if same else "the source's definition differs from the one read before the migration"
        return RestoredResult(power=now.power, same_definition=same, note=note)
