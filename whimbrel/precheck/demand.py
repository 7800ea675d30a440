"""What moving VMs takes of a cloud's quotas: summed by resource, and by pool where a pool has limits of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from whimbrel.model.figures import bytes_text
from whimbrel.model.finding import PrecheckFacts
from whimbrel.model.naming import volume_name
from whimbrel.model.plan import PlacementPolicy, VmPlan
from whimbrel.model.quota import SPACE, Limits, Quota, Resource, VmSize, fitting
from whimbrel.model.vm import VmSpec
from whimbrel.precheck.known import the_vm

Demand = Counter[tuple[Resource, str | None]]
"""Pieces or bytes by resource and pool; with pool None in all."""
POINTS_AT_ONCE = 2
"""Of each disk while a round runs: its own point, and the one before as its base."""


def own_demand(facts: PrecheckFacts) -> Demand:
    """What this VM takes at the target from now on. Raises FactMissing."""
    vm = the_vm(facts)
    return _at_target(facts, vm, facts.plan)


def plan_demand(facts: PrecheckFacts) -> tuple[Demand, int]:
    """The same for this VM and all its companions that are not at the target yet, and how many VMs that is."""
    total, count = own_demand(facts), 1
    for vm, plan in companions(facts):
        if (plan.target_name or vm.name) in facts.target.vm_names:
            continue  # made already: it is part of what is used
        count += 1
        total += _at_target(facts, vm, plan)
    return total, count


def companions(facts: PrecheckFacts) -> Iterable[tuple[VmSpec, VmPlan]]:
    """The plan's other VMs that are known, with the plan as it holds for them."""
    known = {key: vm for vm in facts.companions or () for key in (vm.name, vm.ref)}
    for one in facts.plan.companions:
        if one.vm in known:
            yield known[one.vm], facts.plan.of(one)


def point_demand(facts: PrecheckFacts) -> Demand:
    """What the points of this VM and its companions take at the source: snapshots, and servers that read them."""
    limits, total = facts.source.limits, Demand()
    most = POINTS_AT_ONCE if facts.plan.runs_rounds else 1
    for vm in (the_vm(facts), *(vm for vm, _ in companions(facts))):
        for disk in vm.disks:
            at_once = 1 if limits.served(disk.pool) else most  # such a snapshot is no base of a later one
            count = max(at_once - limits.snapshots_made.get(disk.location, 0), 0)
            _add_snapshots(total, limits, disk.pool, disk.size_bytes, count)
        _add_session(total, limits, [(disk.pool, disk.size_bytes) for disk in vm.disks], copies=True)
    return total


def short(limits: Limits, need: Demand) -> list[str]:
    """For every quota that is too small what is needed and what is left, in words."""
    lacking = [quota for quota in limits.quotas if need[quota.resource, quota.pool] > quota.left]
    return [_line(quota, need[quota.resource, quota.pool]) for quota in lacking]


def tightest(limits: Limits, need: Demand) -> str:
    """The quota of which the largest share of the rest is taken, in words."""
    wanted = [quota for quota in limits.quotas if need[quota.resource, quota.pool]]
    if not wanted:
        return "nothing is limited"
    worst = max(wanted, key=lambda quota: need[quota.resource, quota.pool] / max(quota.left, 1))
    return _line(worst, need[worst.resource, worst.pool])


def size_for(facts: PrecheckFacts, vm: VmSpec, placement: PlacementPolicy) -> VmSize | None:
    """The size that the VM gets at the target, named or fitting; None where sizes are free, or there is none such."""
    asked = placement.size_for(vm.size_name)
    if asked is not None:
        return next((size for size in facts.target.sizes if size.name == asked), None)
    return fitting(facts.target.sizes, vcpus=vm.vcpus, memory_bytes=vm.memory_bytes, name=vm.size_name)


def _line(quota: Quota, need: int) -> str:
    def text(number: int) -> str:
        return bytes_text(number) if quota.resource in SPACE else str(number)

    where = f" in {quota.pool}" if quota.pool is not None else ""
    return f"{quota.resource}{where}: {text(need)} needed, {text(quota.left)} of {text(quota.limit)} left"


def _at_target(facts: PrecheckFacts, vm: VmSpec, plan: VmPlan) -> Demand:
    limits, total = facts.target.limits, Demand()
    name, size, frozen = plan.target_name or vm.name, size_for(facts, vm, plan.placement), _freezes_first_state(facts)
    vcpus, memory_bytes = (size.vcpus, size.memory_bytes) if size is not None else (vm.vcpus, vm.memory_bytes)
    total["VMs", None] += 1
    total["vCPUs", None] += vcpus
    total["memory", None] += memory_bytes
    total["ports", None] += len(vm.nics)
    for disk in vm.disks:
        pool = plan.pool_for(disk.pool)
        if not _there(facts, name, disk.key):
            total.update({("volumes", None): 1, ("volumes", pool): 1})
            space = limits.counted(disk.size_bytes)
            total.update({("volume space", None): space, ("volume space", pool): space})
        _add_snapshots(total, limits, pool, disk.size_bytes, 1 if frozen else 0)
    if plan.mode != "dual-attach":
        pools = [(plan.pool_for(disk.pool), disk.size_bytes) for disk in vm.disks]
        _add_session(total, limits, pools, copies=frozen)
        can, mover = facts.target.capabilities, limits.mover
        early = frozen and can is not None and can.announces and plan.runs_rounds
        if early and mover is not None and any(limits.served(pool) for pool, _ in pools):
            # what it begins with is read through a second server while the first still writes, before the VM is made
            total["ports", None] += 1
            total["vCPUs", None] += max(mover.vcpus - vcpus, 0)
            total["memory", None] += max(mover.memory_bytes - memory_bytes, 0)
    return total


def _add_session(total: Demand, limits: Limits, disks: Iterable[tuple[str | None, int]], *, copies: bool) -> None:
    """A mover server for those (pool, size) that go through one; with ``copies`` it has volumes made of snapshots."""
    served = [(pool, size_bytes) for pool, size_bytes in disks if limits.served(pool)]
    if limits.mover is None or not served:
        return
    total["VMs", None] += 1
    total["vCPUs", None] += limits.mover.vcpus
    total["memory", None] += limits.mover.memory_bytes
    total["ports", None] += 1
    for pool, size_bytes in served if copies else ():
        space = limits.counted(size_bytes)
        total.update({("volumes", None): 1, ("volumes", pool): 1})
        total.update({("volume space", None): space, ("volume space", pool): space})


def _add_snapshots(total: Demand, limits: Limits, pool: str | None, size_bytes: int, count: int) -> None:
    for key in {None, pool}:
        total["snapshots", key] += count
        if limits.snapshots_take_space:
            total["volume space", key] += count * limits.counted(size_bytes)


def _there(facts: PrecheckFacts, name: str, disk: str) -> bool:
    """Whether a migration has made the VM's volume at the target already."""
    if facts.stage == "cutover" and facts.plan.mode != "dual-attach":
        return True
    wanted = re.compile(re.escape(volume_name(name, disk, "")) + "[0-9a-f]{10}")
    return any(wanted.fullmatch(volume) for volume in facts.target.limits.volumes_made)


def _freezes_first_state(facts: PrecheckFacts) -> bool:
    """Whether a point of the target is taken before its first write."""
    can = facts.target.capabilities
    plan = facts.plan
    wanted = plan.mode != "dual-attach" and (plan.verify.when == "after_boot" or plan.keep_writes)
    return wanted and can is not None and (can.start_paused or can.points_outlive_start)
