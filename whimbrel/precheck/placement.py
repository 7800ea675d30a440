"""Rules about as what and where the target cloud is to make the VM: size (flavor), zone, server group."""

from __future__ import annotations

from whimbrel.model.figures import bytes_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.quota import VmSize
from whimbrel.model.vm import VmSpec
from whimbrel.precheck.demand import companions, size_for
from whimbrel.precheck.known import listed, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, Answer, found, ok, rule


@rule("target.size", "the target has a size for the VM", Severity.BLOCK, catalogue=(57,), stages=ALWAYS)
def size(facts: PrecheckFacts) -> Answer:
    """The size (flavor) that the plan names, else one with at least the VM's vCPUs and memory.

    None with GPUs and the like is taken, unless it is named or has the name of the VM's own.
    """
    the_target(facts)
    vm, sizes, placement = the_vm(facts), facts.target.sizes, facts.plan.placement
    if not sizes:
        if placement.sizes:
            return found(
                f"the plan names sizes, and {facts.plan.target} has none: it builds VMs of any size",
                "take placement.sizes out of the plan",
            )
        return ok("VMs of any size are built")
    chosen = size_for(facts, vm, placement)
    shape = f"{vm.vcpus} vCPUs and {bytes_text(vm.memory_bytes)}"
    if placement.size_for(vm.size_name) is not None:
        return _named(facts, vm, chosen, shape)
    if chosen is None:
        special = sorted(
            f"{one.name} ({listed(one.special)})"
            for one in sizes
            if one.special and one.vcpus >= vm.vcpus and one.memory_bytes >= vm.memory_bytes
        )
        hint = f"; with more than that: {listed(special)}" if special else ""
        return found(
            f"no size at {facts.plan.target} has {shape}{hint}",
            "make a flavor of this size in the target cloud, give the project access to one, or name one in the plan",
        )
    return ok(f"{_size_text(chosen)} for {shape}")


@rule("target.zone", "the zone that the plan names is there", Severity.BLOCK, catalogue=(58,), stages=ALWAYS)
def zone(facts: PrecheckFacts) -> Answer:
    """It takes VMs now; whether a host of it has room is asked where the credentials may ask (target.hosts)."""
    the_target(facts)
    wanted, known = facts.plan.placement.zone, facts.target.zones
    if wanted is None:
        return ok("the cloud chooses")
    if wanted not in known:
        return found(
            f"there is no zone {wanted} at {facts.plan.target}; there are {listed(sorted(known)) or 'none'}",
            "correct placement.zone in the plan, or take it out",
        )
    return ok(wanted)


@rule("target.group", "the server group that the plan names has room", Severity.BLOCK, catalogue=(55, 58))
def group(facts: PrecheckFacts) -> Answer:
    """There is exactly one of this name, and it takes all VMs of the plan that are to join it."""
    the_target(facts)
    wanted = facts.plan.placement.group
    if wanted is None:
        return ok("the VM joins none")
    named = [one for one in facts.target.groups if one.name == wanted]
    if len(named) != 1:
        known = listed(sorted(one.name for one in facts.target.groups)) or "none"
        how_many = f"{len(named)} server groups are" if named else "no server group is"
        return found(
            f"{how_many} named {wanted} at {facts.plan.target}; there are {known}",
            "correct placement.group in the plan, take it out, or make such a group at the target",
        )
    (there,) = named
    joining = 1 + sum(
        plan.placement.group == wanted and (plan.target_name or vm.name) not in facts.target.vm_names
        for vm, plan in companions(facts)
    )
    if there.members_max is not None and there.members + joining > there.members_max:
        return found(
            f"{joining} VMs are to join {wanted}, which has {there.members} of at most {there.members_max} members",
            "raise how many members a group may have, or name another group",
        )
    return ok(f"{wanted} ({there.policy}), {there.members} members")


def _named(facts: PrecheckFacts, vm: VmSpec, chosen: VmSize | None, shape: str) -> Answer:
    """What to say of a size that the plan asks for."""
    asked = facts.plan.placement.size_for(vm.size_name)
    if chosen is None:
        return found(
            f"there is no size {asked} at {facts.plan.target}; "
            f"there are {listed(sorted(one.name for one in facts.target.sizes))}",
            "correct placement.sizes in the plan, or give the project access to that flavor",
        )
    if chosen.vcpus < vm.vcpus or chosen.memory_bytes < vm.memory_bytes:
        return found(
            f"{_size_text(chosen)}, which the plan names, is less than {shape}",
            "name a larger one if the VM needs what it has now",
            Severity.WARN,
        )
    return ok(f"{_size_text(chosen)}, as the plan says, for {shape}")


def _size_text(size: VmSize) -> str:
    return f"{size.name} ({size.vcpus} vCPUs, {bytes_text(size.memory_bytes)})"


RULES = (size, zone, group)
