"""What the facts say, or ``FactMissing``: the questions that several rules ask."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from whimbrel.model.facts import DiskFacts, NetworkFacts, PoolFacts
from whimbrel.model.finding import PrecheckFacts
from whimbrel.model.forecast import ROUND_OVERHEAD_S, Forecast, forecast
from whimbrel.model.vm import Capabilities, DiskSpec, NicSpec, VmSpec
from whimbrel.precheck.rule import FactMissing

HANDOVER_S = 2.0
"""Releasing and adopting disks takes no longer, whatever their size."""


def the_vm(facts: PrecheckFacts) -> VmSpec:
    """The VM to be moved. Raises FactMissing."""
    if facts.source.vm is None:
        raise FactMissing(f"the VM {facts.plan.vm} could not be read from {facts.plan.source}")
    return facts.source.vm


def source_can(facts: PrecheckFacts) -> Capabilities:
    """What the source cloud can do. Raises FactMissing."""
    if facts.source.capabilities is None:
        raise FactMissing(f"what {facts.plan.source} can do")
    return facts.source.capabilities


def target_can(facts: PrecheckFacts) -> Capabilities:
    """What the target cloud can do. Raises FactMissing."""
    if facts.target.capabilities is None:
        raise FactMissing(f"what {facts.plan.target} can do")
    return facts.target.capabilities


def the_target(facts: PrecheckFacts) -> str:
    """Name of the target cloud, if it answered. Raises FactMissing."""
    if not facts.target.reachable:
        raise FactMissing(f"the target cloud {facts.plan.target} does not answer")
    return facts.plan.target


def target_name(facts: PrecheckFacts) -> str:
    """Name that the VM gets at the target. Raises FactMissing."""
    return facts.plan.target_name or the_vm(facts).name


def disk_facts(facts: PrecheckFacts) -> tuple[DiskFacts, ...]:
    """What was learned about each disk. Raises FactMissing where a disk of the VM was not looked at."""
    seen = {disk.key for disk in facts.source.disks}
    unseen = [disk.key for disk in the_vm(facts).disks if disk.key not in seen]
    if unseen:
        raise FactMissing(f"the image of {', '.join(unseen)} was not looked at")
    return facts.source.disks


def mapped_pools(facts: PrecheckFacts) -> Iterator[tuple[DiskSpec, PoolFacts]]:
    """Each disk with its target pool, for disks that are mapped to a pool that exists. Raises FactMissing."""
    the_target(facts)
    pools = {pool.name: pool for pool in facts.target.pools}
    for disk in the_vm(facts).disks:
        name = facts.plan.pool_for(disk.pool)
        if name is not None and name in pools:
            yield disk, pools[name]


def mapped_networks(facts: PrecheckFacts) -> Iterator[tuple[NicSpec, NetworkFacts]]:
    """Each NIC with its target network, for NICs mapped to a network that exists. Raises FactMissing."""
    the_target(facts)
    networks = {network.name: network for network in facts.target.networks}
    for nic in the_vm(facts).nics:
        name = facts.plan.network_for(nic.network)
        if name is not None and name in networks:
            yield nic, networks[name]


def data_bytes(vm: VmSpec) -> int:
    """Bytes that a full copy must send: what is allocated, or the whole size where that is not known."""
    return sum(held_bytes(disk) for disk in vm.disks)


def held_bytes(disk: DiskSpec) -> int:
    """Bytes that a sparse copy of the disk takes up: its allocation, never more than its size."""
    return disk.size_bytes if disk.allocated_bytes is None else min(disk.allocated_bytes, disk.size_bytes)


def untracked(vm: VmSpec) -> tuple[DiskSpec, ...]:
    """Writable disks for which every round has to read and hash the whole disk."""
    return tuple(disk for disk in vm.disks if not disk.trackable and not disk.read_only)


def link_bytes_per_s(facts: PrecheckFacts) -> float:
    """What the path carries: the slower end, or the plan's own limit if that is lower. Raises FactMissing."""
    path = facts.path
    measured = [rate for rate in (path.read_bytes_per_s, path.write_bytes_per_s) if rate is not None and rate > 0]
    if not measured:
        raise FactMissing("the bandwidth was not measured")
    limit = facts.plan.bandwidth_bytes_per_s
    return min([*measured, limit] if limit else measured)


def read_rate(facts: PrecheckFacts) -> float:
    """Bytes per second that source reads gave. Raises FactMissing."""
    if not facts.path.read_bytes_per_s or facts.path.read_bytes_per_s <= 0:
        raise FactMissing("the source's read rate was not measured")
    return facts.path.read_bytes_per_s


def now(facts: PrecheckFacts) -> datetime:
    """When the facts were gathered: the mover's clock, else the target's or the source's. Raises FactMissing."""
    for moment in (facts.path.measured_at, facts.target.clock, facts.source.clock):
        if moment is not None:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise FactMissing("the time at which the facts were gathered")


def dirty_bytes_per_s(facts: PrecheckFacts) -> float:
    """Measured rate at which the guest touches new blocks. Raises FactMissing."""
    if facts.path.dirty_bytes_per_s is None:
        raise FactMissing("the rate at which the guest writes was not measured")
    return facts.path.dirty_bytes_per_s


def outage(facts: PrecheckFacts) -> Forecast:
    """The outage to expect by what is known before the first copy. Raises FactMissing.

    Incremental: the forecast of the rounds with the measured rates as hints; disks without tracking add the time to
    read and hash them once more while the guest is stopped. Cold: everything is copied while the guest is stopped.
    Dual-attach: stop and boot, and two seconds for the handover.
    Streaming: nothing is waited for but stop and boot.
    """
    moment = facts.path.measured_at or facts.target.clock or facts.source.clock or datetime.fromtimestamp(0, UTC)
    rounds = facts.plan.rounds
    if facts.plan.mode == "dual-attach":
        return Forecast(
            made_at=moment,
            stop_s=rounds.expected_stop_s,
            delta_bytes=0.0,
            delta_s=HANDOVER_S,
            boot_s=rounds.expected_boot_s,
            outage_s=rounds.expected_stop_s + HANDOVER_S + rounds.expected_boot_s,
            converges=None,
        )
    vm, link = the_vm(facts), link_bytes_per_s(facts)
    total = data_bytes(vm)
    if not facts.plan.runs_rounds:
        # What is streamed is not waited for.
        delta_s = (total / link if facts.plan.mode == "cold" else 0.0) + ROUND_OVERHEAD_S
        return Forecast(
            made_at=moment,
            stop_s=rounds.expected_stop_s,
            delta_bytes=float(total) if facts.plan.mode == "cold" else 0.0,
            delta_s=delta_s,
            boot_s=rounds.expected_boot_s,
            outage_s=rounds.expected_stop_s + delta_s + rounds.expected_boot_s,
            converges=None,
            link_bytes_per_s=link,
        )
    made = forecast(
        (),
        now=moment,
        shrink_ratio=rounds.shrink_ratio,
        stop_s=rounds.expected_stop_s,
        boot_s=rounds.expected_boot_s,
        dirty_hint=dirty_bytes_per_s(facts),
        link_hint=link,
        data_bytes=total,
        streamed=facts.plan.mode == "streaming",
    )
    if made is None:
        raise FactMissing("nothing to forecast from")
    scan_s = 0.0 if facts.plan.mode == "streaming" else scan_seconds(facts)
    return made.model_copy(update={"delta_s": made.delta_s + scan_s, "outage_s": made.outage_s + scan_s})


def scan_seconds(facts: PrecheckFacts) -> float:
    """Time to read all disks without tracking once, at the source's read rate. Raises FactMissing."""
    disks = untracked(the_vm(facts))
    return sum(held_bytes(disk) for disk in disks) / read_rate(facts) if disks else 0.0


def baseline_s(facts: PrecheckFacts) -> float:
    """Time that the first full copy takes. Raises FactMissing."""
    return data_bytes(the_vm(facts)) / link_bytes_per_s(facts)


def listed(items: list[str] | tuple[str, ...], most: int = 6) -> str:
    """The items joined for one line; beyond ``most`` only how many more there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
