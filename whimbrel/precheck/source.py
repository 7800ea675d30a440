"""Rules about the VM to be moved: there, alone, in a state that the mode can take, and nothing on it gets lost."""

from __future__ import annotations

from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.vm import Power
from whimbrel.precheck.known import listed, source_can, the_vm, untracked
from whimbrel.precheck.rule import ALWAYS, BEFORE, Answer, FactMissing, found, ok, rule

DEFAULT_HOSTNAMES = frozenset({"localhost", "localhost.localdomain", "debian", "ubuntu", "(none)"})


@rule("source.found", "the VM is found", Severity.BLOCK, catalogue=(1,), stages=ALWAYS)
def vm_found(facts: PrecheckFacts) -> Answer:
    """The source cloud knows a VM of the plan's name or reference."""
    if not facts.source.reachable:
        raise FactMissing(f"the source cloud {facts.plan.source} does not answer")
    vm = facts.source.vm
    if vm is None and len(facts.source.same_name) > 1:
        raise FactMissing(f"which VM {facts.plan.vm} means")
    if vm is None:
        return found(
            f"{facts.plan.source} has no VM {facts.plan.vm}", "correct the VM's name in the plan, or its source cloud"
        )
    return ok(f"{vm.name} ({vm.ref}) on {facts.plan.source}")


@rule("source.unique", "the VM's name fits one VM only", Severity.BLOCK, catalogue=(1,))
def vm_unique(facts: PrecheckFacts) -> Answer:
    """The plan's name fits exactly one VM of the source cloud."""
    if len(facts.source.same_name) > 1:
        return found(
            f"{len(facts.source.same_name)} VMs fit {facts.plan.vm}: {listed(facts.source.same_name)}",
            "name the VM in the plan by its reference instead",
        )
    return ok(f"{the_vm(facts).name} is the only one")


@rule("source.not-migrated", "the VM was not made by an open migration", Severity.WARN, catalogue=(1,))
def not_migrated(facts: PrecheckFacts) -> Answer:
    """The VM carries no tag of a migration that made it and was not confirmed yet."""
    owner = the_vm(facts).owner_migration
    if owner:
        return found(
            f"the VM carries the tag of migration {owner}",
            "confirm or roll back that migration first; a rollback of it would remove this VM",
        )
    return ok("no tag of another migration")


@rule("source.mode", "the source cloud can serve the plan's mode", Severity.BLOCK, catalogue=(2, 15))
def mode_served(facts: PrecheckFacts) -> Answer:
    """Mode incremental needs points in time of a running VM; every source can serve mode cold."""
    can = source_can(facts)
    if "source" not in can.roles:
        return found(f"{facts.plan.source} ({can.kind}) cannot be a source", "choose another source cloud")
    if facts.plan.runs_rounds and not can.live_points:
        return found(f"{facts.plan.source} cannot open points in time of a running VM", "set mode: cold for this VM")
    return ok(f"{can.kind} serves mode {facts.plan.mode}")


@rule("source.power", "the VM's power state suits the mode", Severity.BLOCK, catalogue=(2,), stages=ALWAYS)
def power_allowed(facts: PrecheckFacts) -> Answer:
    """Incremental moves a running VM, cold a running or a stopped one; paused and crashed VMs are left alone."""
    power = the_vm(facts).power
    if power is Power.UNKNOWN:
        raise FactMissing("the VM's power state")
    if power in {Power.PAUSED, Power.CRASHED}:
        return found(f"the VM is {power.value}", "resume it, or power it off and set mode: cold")
    if power is Power.OFF and facts.plan.mode == "incremental":
        if facts.stage == "cutover":
            return found(
                "the VM was stopped since the migration began",
                "nothing: the last changes are read from the stopped VM; start it if it is meant to run",
                Severity.WARN,
            )
        return found("the VM is off, and mode incremental moves a running one", "set mode: cold, or start the VM")
    return ok(f"the VM is {power.value}, mode is {facts.plan.mode}")


@rule("source.not-suspended", "no saved memory image waits", Severity.BLOCK, catalogue=(3,), stages=ALWAYS)
def not_suspended(facts: PrecheckFacts) -> Answer:
    """The VM is neither suspended nor saved to disk: its disks would be inconsistent without that memory image."""
    vm = the_vm(facts)
    if facts.source.managed_save:
        return found(
            "a saved memory image of the VM exists (managed save); its disks are in the middle of work",
            "start the VM from its image, or remove the image if its content is not needed",
        )
    if vm.power is Power.SUSPENDED:
        return found("the guest is suspended", "wake the guest up, or shut it down cleanly")
    return ok("no saved memory image")


@rule("source.locked", "the VM may be stopped and started", Severity.BLOCK, stages=ALWAYS)
def unlocked(facts: PrecheckFacts) -> Answer:
    """Nobody has locked the VM against these credentials: it must be stopped, and started again by a rollback."""
    the_vm(facts)
    if facts.source.locked:
        return found(facts.source.locked, "ask who has locked it, and unlock it (openstack server unlock)")
    return ok("not locked")


@rule("source.running-job", "no other job works on the VM", Severity.BLOCK, catalogue=(19,), stages=ALWAYS)
def no_job(facts: PrecheckFacts) -> Answer:
    """No backup, block or live-migration job of somebody else runs on the VM now."""
    the_vm(facts)
    if facts.source.running_job:
        return found(
            f"another job is running: {facts.source.running_job}",
            "wait for it or end it, and keep backup schedules away from the migration's time",
        )
    return ok("no other job runs")


@rule("source.snapshots", "no snapshots exist", Severity.WARN, catalogue=(17, 18))
def no_snapshots(facts: PrecheckFacts) -> Answer:
    """Snapshots stay behind: the target gets the present content only. Some clouds refuse tracking beside them."""
    the_vm(facts)
    names = facts.source.snapshots
    if names:
        return found(
            f"{len(names)} snapshots are not moved: {listed(names)}",
            "delete those not needed; the others stay with the source VM only",
        )
    return ok("no snapshots")


@rule("source.definition-pending", "no change of the definition waits for a restart", Severity.WARN)
def definition_settled(facts: PrecheckFacts) -> Answer:
    """The running definition is the one that the next start would use, so the target gets what the guest knows."""
    the_vm(facts)
    if facts.source.definition_pending:
        return found(
            "the running definition differs from the stored one; the target is built from the stored one",
            "restart the VM at the source first, or take the pending change back",
        )
    return ok("running and stored definition agree")


@rule("source.agent", "the guest agent answers", Severity.WARN, catalogue=(13,))
def agent_answers(facts: PrecheckFacts) -> Answer:
    """A guest agent makes the stop clean and the points in time consistent for file systems."""
    vm = the_vm(facts)
    if vm.power is not Power.RUNNING:
        return ok("not needed: the VM is not running")
    if facts.source.agent_answers:
        return ok("the agent answers")
    if facts.source.agent_configured:
        return found(
            "the agent's channel is there but nothing answers: points in time are crash-consistent",
            "start qemu-guest-agent in the guest; without it the stop relies on the ACPI power button",
        )
    return found(
        "no guest agent: points in time are crash-consistent, the stop relies on the ACPI power button",
        "install a guest agent, or set stop.graceful_timeout_s to what the guest needs to shut down",
    )


@rule("source.tpm", "no virtual TPM", Severity.WARN, catalogue=(10,))
def no_tpm(facts: PrecheckFacts) -> Answer:
    """The state of a virtual TPM is not moved: keys sealed in it are lost at the target."""
    the_vm(facts)
    if facts.source.tpm:
        return found(
            "the VM has a virtual TPM; its state stays at the source",
            "have recovery keys at hand (BitLocker, LUKS with a TPM), or unseal before the cutover",
        )
    return ok("no TPM")


@rule("source.passthrough", "no host devices are passed through", Severity.BLOCK, catalogue=(11,))
def no_passthrough(facts: PrecheckFacts) -> Answer:
    """PCI, USB, SR-IOV and mediated devices belong to the source host and cannot follow."""
    the_vm(facts)
    if facts.source.passthrough:
        return found(
            f"host devices are attached: {listed(facts.source.passthrough)}",
            "detach them (an SR-IOV card: replace it by a virtio one), or accept that the target has none",
        )
    return ok("no host devices")


@rule("source.shared-filesystems", "no directories of the host are shared", Severity.BLOCK, catalogue=(11,))
def no_shared_filesystems(facts: PrecheckFacts) -> Answer:
    """Directories shared with the guest (virtiofs, 9p) are not on its disks, so their content is not moved."""
    the_vm(facts)
    if facts.source.shared_filesystems:
        return found(
            f"directories of the host are shared with the guest: {listed(facts.source.shared_filesystems)}",
            "move their content into a disk, or provide it at the target and accept this finding",
        )
    return ok("no shared directories")


@rule("source.placement", "no placement settings get lost", Severity.INFO, catalogue=(12,))
def placement(facts: PrecheckFacts) -> Answer:
    """CPU pinning, NUMA layout and watchdog fit one host and may have to be set again at the target."""
    the_vm(facts)
    settings = {
        "CPU pinning": facts.source.cpu_pinning,
        "NUMA layout": facts.source.numa,
        "watchdog": facts.source.watchdog,
    }
    present = [name for name, there in settings.items() if there]
    if present:
        return found(f"fitted to the source host: {listed(present)}", "look at these settings again at the target")
    return ok("no CPU pinning, NUMA layout or watchdog")


@rule("source.autostart", "the source VM is not started by its host", Severity.WARN)
def autostart(facts: PrecheckFacts) -> Answer:
    """With autostart on, a restart of the source host before confirm would bring up a second running copy."""
    if the_vm(facts).autostart:
        return found(
            "autostart is on at the source: between cutover and confirm a restart of its host would start the VM twice",
            "switch autostart off, or keep the source host from restarting until confirm",
        )
    return ok("autostart is off")


@rule("source.hostname", "the guest has a host name of its own", Severity.WARN, catalogue=(6,))
def hostname(facts: PrecheckFacts) -> Answer:
    """A default host name is a sign of a guest that was never configured, and makes DHCP leases collide."""
    the_vm(facts)
    name = facts.source.hostname
    if name is None:
        raise FactMissing("the guest's host name (only an agent tells it)")
    if not name.strip() or name.lower() in DEFAULT_HOSTNAMES:
        return found(f"the guest's host name is {name!r}", "set a host name in the guest")
    return ok(f"host name {name}")


@rule("source.guest-os", "the guest system needs no care", Severity.INFO, catalogue=(3, 7, 37), stages=BEFORE)
def guest_os(facts: PrecheckFacts) -> Answer:
    """Windows with Fast Startup never shuts down fully; its SAN policy may leave data disks offline after a move."""
    the_vm(facts)
    system = facts.source.guest_os
    if system is None:
        raise FactMissing("the guest's operating system (only an agent tells it)")
    if "windows" in system.lower():
        return found(
            f"the guest runs {system}: Fast Startup hibernates instead of shutting down",
            "run 'powercfg /h off' in the guest, and set its SAN policy to OnlineAll",
            Severity.WARN,
        )
    return ok(f"the guest runs {system}")


@rule("source.rebuild", "the target can have the same machine", Severity.WARN, catalogue=(60,))
def same_machine(facts: PrecheckFacts) -> Answer:
    """A VM of another kind of hypervisor (Xen) gets other virtual hardware: its guest must have the drivers."""
    the_vm(facts)
    if facts.source.rebuild_blockers:
        return found(
            listed(facts.source.rebuild_blockers), "change the VM at the source, or leave it there", Severity.BLOCK
        )
    if facts.source.rebuild_changes:
        return found(
            "; ".join(facts.source.rebuild_changes),
            "prepare the guest: virtio drivers in its initramfs, a boot loader on its disk, no device names in fstab",
        )
    return ok("nothing changes but what belongs to the host")


@rule("source.permissions", "the credentials may act on the source", Severity.BLOCK, catalogue=(78,))
def may_act(facts: PrecheckFacts) -> Answer:
    """The source's credentials allow points in time and power, not only reading the inventory."""
    the_vm(facts)
    if not facts.source.can_act:
        return found(
            f"the connection to {facts.plan.source} is read-only",
            "configure credentials that may stop the VM and open points in time",
        )
    return ok("the connection may act")


@rule("source.vm-shape", "the VM's figures are plausible", Severity.BLOCK)
def shape(facts: PrecheckFacts) -> Answer:
    """vCPUs and memory were read and are above zero, so that the target can be built from them."""
    vm = the_vm(facts)
    if vm.vcpus < 1 or vm.memory_bytes < 1:
        return found(
            f"read {vm.vcpus} vCPUs and {vm.memory_bytes} bytes of memory", "look at the VM's definition at the source"
        )
    waiting = f", {len(untracked(vm))} of {len(vm.disks)} disks without tracking" if untracked(vm) else ""
    return ok(f"{vm.vcpus} vCPUs, {len(vm.disks)} disks, {len(vm.nics)} network cards{waiting}")


RULES = (
    vm_found,
    vm_unique,
    not_migrated,
    unlocked,
    mode_served,
    may_act,
    same_machine,
    shape,
    power_allowed,
    not_suspended,
    no_job,
    no_snapshots,
    definition_settled,
    agent_answers,
    no_tpm,
    no_passthrough,
    no_shared_filesystems,
    placement,
    autostart,
    hostname,
    guest_os,
)
