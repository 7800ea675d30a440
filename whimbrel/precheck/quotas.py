"""Rules about what the project may have: quotas as a set, for this VM, for the whole plan, and for points in time."""

from __future__ import annotations

from collections import defaultdict

from whimbrel.model.figures import bytes_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.demand import (
    companions,
    own_demand,
    plan_demand,
    point_demand,
    short,
    tightest,
)
from whimbrel.precheck.known import held_bytes, listed, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, Answer, FactMissing, found, ok, rule

RAISE = "raise the project's quota, or remove what it does not need"


@rule("quota.vm", "the target's quotas have room for the VM", Severity.BLOCK, catalogue=(55,), stages=ALWAYS)
def vm_fits(facts: PrecheckFacts) -> Answer:
    """VMs, vCPUs, memory, volumes and their space (also by pool), snapshots, ports: what this VM takes from now on."""
    the_target(facts)
    limits, need = facts.target.limits, own_demand(facts)
    lacking = short(limits, need)
    if lacking:
        return found(f"the quota at {facts.plan.target} is too small: {listed(lacking)}", RAISE)
    return ok(tightest(limits, need))


@rule("quota.plan", "the target's quotas have room for the whole plan", Severity.BLOCK, catalogue=(55, 56))
def plan_fits(facts: PrecheckFacts) -> Answer:
    """The same summed over all VMs that the plan moves together; those that are at the target already count as used."""
    the_target(facts)
    if not facts.plan.companions:
        return ok("the VM is moved alone")
    if not facts.target.limits.quotas:
        return ok("nothing is limited")
    _known(facts)
    need, count = plan_demand(facts)
    lacking = short(facts.target.limits, need)
    if lacking:
        return found(
            f"{count} VMs together: {listed(lacking)}",
            f"{RAISE}, or start fewer VMs at once (--vm)",
        )
    return ok(f"{count} VMs together; {tightest(facts.target.limits, need)}")


@rule("quota.points", "the source's quotas have room for points in time", Severity.BLOCK, catalogue=(55, 17))
def points_fit(facts: PrecheckFacts) -> Answer:
    """Snapshots of every disk of all VMs of the plan, two of each while a round runs, and the space that they count."""
    the_vm(facts)
    if facts.plan.mode == "dual-attach":
        return ok("mode dual-attach takes no points")
    limits = facts.source.limits
    if not limits.quotas:
        return ok("nothing is limited")
    _known(facts)
    need = point_demand(facts)
    lacking = short(limits, need)
    if lacking:
        return found(
            f"the quota at {facts.plan.source} is too small for points in time: {listed(lacking)}",
            f"{RAISE}, or start fewer VMs at once (--vm)",
        )
    return ok(tightest(limits, need))


@rule("quota.volume-size", "no disk is larger than a volume may be", Severity.BLOCK, catalogue=(25, 55))
def volume_size(facts: PrecheckFacts) -> Answer:
    """Every disk, in the whole units that the target counts in, is at most the largest volume allowed there."""
    the_target(facts)
    limits = facts.target.limits
    most = limits.volume_max_bytes
    if most is None:
        the_vm(facts)
        return ok("volumes of any size")
    large = [
        f"{disk.key} ({bytes_text(disk.size_bytes)})"
        for disk in the_vm(facts).disks
        if limits.counted(disk.size_bytes) > most
    ]
    if large:
        return found(
            f"larger than {bytes_text(most)}, the most that {facts.plan.target} allows: {listed(large)}",
            "raise the project's limit for one volume (per_volume_gigabytes), or split the disk in the guest",
        )
    return ok(f"at most {bytes_text(most)} each")


@rule("storage.provisioning", "the storage takes volumes of this size", Severity.BLOCK, catalogue=(59,))
def provisioning(facts: PrecheckFacts) -> Answer:
    """All disks of the plan at their whole size, against what the cloud still places in each pool, thin or not."""
    the_target(facts)
    limits, need = facts.target.limits, plan_demand(facts)[0] if facts.companions is not None else own_demand(facts)
    known = {pool.name: pool.provisionable_bytes for pool in facts.target.pools}
    wanted = {pool: need["volume space", pool] for (kind, pool) in need if kind == "volume space" and pool is not None}
    if not limits.quotas and not any(known.get(pool) is not None for pool in wanted):
        return ok("the target makes no promise of room")
    full = [
        f"{pool} takes {bytes_text(room)} more, {bytes_text(wanted[pool])} needed"
        for pool in sorted(wanted)
        if (room := known.get(pool)) is not None and wanted[pool] > room
    ]
    if full:
        return found(listed(full), "add storage, raise its over-subscription, or map the disks to another pool")
    if wanted and all(known.get(pool) is None for pool in wanted):
        raise FactMissing("how much more the storage takes (an administrator may ask)")
    return ok(f"room in {len(wanted)} pools")


@rule("storage.plan-space", "the target pools have room for the whole plan", Severity.WARN, catalogue=(56, 59))
def plan_space(facts: PrecheckFacts) -> Answer:
    """What the disks of all VMs of the plan hold now, summed over each pool, against its free space."""
    the_target(facts)
    if not facts.plan.companions:
        return ok("the VM is moved alone")
    _known(facts)
    need: dict[str, int] = defaultdict(int)
    vms = [(the_vm(facts), facts.plan)]
    vms += [(vm, plan) for vm, plan in companions(facts) if (plan.target_name or vm.name) not in facts.target.vm_names]
    for vm, plan in vms:
        for disk in vm.disks:
            pool = plan.pool_for(disk.pool)
            if pool is not None:
                need[pool] += held_bytes(disk)
    free = {pool.name: pool.free_bytes for pool in facts.target.pools}
    full = [
        f"{pool} needs {bytes_text(need[pool])} and has {bytes_text(room)}"
        for pool in sorted(need)
        if (room := free.get(pool)) is not None and need[pool] > room
    ]
    if full:
        return found(f"{len(vms)} VMs together: {listed(full)}", "free space in the pool, or start fewer VMs at once")
    if need and all(free.get(pool) is None for pool in need):
        raise FactMissing("the free space of the target's pools (an administrator may ask)")
    return ok(f"{len(vms)} VMs together fit")


def _known(facts: PrecheckFacts) -> None:
    if facts.plan.companions and facts.companions is None:
        raise FactMissing("the other VMs of the plan were not read")


RULES = (vm_fits, plan_fits, points_fit, volume_size, provisioning, plan_space)
