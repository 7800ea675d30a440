"""Which mode suits a VM, and why, in one line."""

from __future__ import annotations

from whimbrel.model.figures import bytes_text
from whimbrel.model.plan import Mode
from whimbrel.model.vm import Capabilities, Power, VmSpec
from whimbrel.precheck.known import data_bytes, held_bytes, listed, untracked


def suggest_mode(vm: VmSpec, capabilities: Capabilities) -> tuple[Mode, str]:
    """The mode for this VM on a source with these capabilities, and the reason as the plan file's comment."""
    if vm.power is not Power.RUNNING:
        return "cold", f"the VM is {vm.power.value}: one copy is enough"
    if not capabilities.live_points:
        return "cold", f"{capabilities.kind} cannot open points in time of a running VM"
    shared = [disk.key for disk in vm.disks if disk.shareable and not disk.read_only]
    if shared:
        return "cold", f"{listed(shared)} may be written by other VMs: only stopped disks can be trusted"
    size = bytes_text(data_bytes(vm))
    whole = untracked(vm)
    if not capabilities.change_tracking or (whole and len(whole) == sum(not disk.read_only for disk in vm.disks)):
        return "incremental", f"running, {size}; no change tracking, so each round reads and hashes all of it"
    if whole:
        cost = bytes_text(sum(held_bytes(disk) for disk in whole))
        return "incremental", f"running, {size}; without tracking: {listed([d.key for d in whole])} ({cost} a round)"
    return "incremental", f"running, {size}; changes of every disk are tracked"
