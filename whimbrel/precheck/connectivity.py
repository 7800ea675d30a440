"""Rules about the ways: both APIs, both clocks, and the path of the bytes, tried with real ones."""

from __future__ import annotations

import re

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.vm import Power
from whimbrel.precheck.known import link_bytes_per_s, listed, source_can, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, RUN, START, Answer, FactMissing, found, ok, rule

MAX_CLOCK_SKEW_S = 5.0
SLOW_BYTES_PER_S = 10 * (1 << 20)
SLOW_LATENCY_S = 0.05
MANIFEST_RATIO = 32 / 65536
"""Bytes of manifest per byte of disk at most: a digest and a flag for each 64 KiB."""


@rule("connect.different-clouds", "source and target are two clouds", Severity.BLOCK, catalogue=(80,))
def different(facts: PrecheckFacts) -> Answer:
    """The plan moves a VM to another cloud than the one it is on."""
    if facts.plan.source == facts.plan.target:
        return found(f"source and target are both {facts.plan.source}", "name another target cloud in the plan")
    return ok(f"{facts.plan.source} -> {facts.plan.target}")


@rule("connect.source", "the source's API answers", Severity.BLOCK, catalogue=(70,), stages=ALWAYS)
def source_api(facts: PrecheckFacts) -> Answer:
    """The source cloud answers with the configured credentials."""
    if facts.source.access.why_refused:
        return ok(f"{facts.plan.source} answers; connect.credentials tells what it says")
    if not facts.source.reachable:
        return found(
            f"{facts.plan.source} does not answer: {facts.source.unreachable_why or 'no reason given'}",
            "check the address and the credential of this cloud in whimbrel.yaml, and that its service runs",
        )
    return ok(f"{facts.plan.source} answers {facts.source.hypervisor_version}".strip())


@rule("connect.target", "the target's API answers", Severity.BLOCK, catalogue=(70,), stages=ALWAYS)
def target_api(facts: PrecheckFacts) -> Answer:
    """The target cloud answers with the configured credentials."""
    if facts.target.access.why_refused:
        return ok(f"{facts.plan.target} answers; connect.credentials tells what it says")
    if not facts.target.reachable:
        return found(
            f"{facts.plan.target} does not answer: {facts.target.unreachable_why or 'no reason given'}",
            "check the address and the credential of this cloud in whimbrel.yaml, and that its service runs",
        )
    return ok(f"{facts.plan.target} answers {facts.target.hypervisor_version}".strip())


@rule("connect.clocks", "the clocks agree", Severity.WARN, catalogue=(70,))
def clocks(facts: PrecheckFacts) -> Answer:
    """Clocks more than 5 s apart break certificates and tokens, and make the guest jump in time."""
    skew = facts.path.clock_skew_s
    if skew is None:
        if facts.source.clock is None or facts.target.clock is None:
            raise FactMissing("the clocks of both clouds")
        skew = (facts.source.clock - facts.target.clock).total_seconds()
    if abs(skew) > MAX_CLOCK_SKEW_S:
        return found(f"the clocks are {duration_text(abs(skew))} apart", "let both sides follow a time server (chrony)")
    return ok(f"{duration_text(abs(skew))} apart")


@rule("connect.versions", "the target's hypervisor is not older", Severity.WARN, catalogue=(73,))
def versions(facts: PrecheckFacts) -> Answer:
    """An older hypervisor may lack a device or a machine type that the VM's definition names."""
    before, after = _versions(facts.source.hypervisor_version), _versions(facts.target.hypervisor_version)
    if not before or len(before) != len(after):
        raise FactMissing("comparable versions of both hypervisors")
    text = f"source {facts.source.hypervisor_version}, target {facts.target.hypervisor_version}"
    if any(new < old for old, new in zip(before, after, strict=True)):
        return found(
            f"the target's hypervisor is older: {text}", "upgrade the target, or try with a clone of the VM first"
        )
    return ok(text)


def _versions(text: str) -> list[tuple[int, ...]]:
    """``libvirt 11.3.0, QEMU 10.0.2`` -> ``[(11, 3, 0), (10, 0, 2)]``."""
    return [tuple(int(part) for part in one.split(".")) for one in re.findall(r"\d{1,9}(?:\.\d{1,9})+", text)]


def _probed(facts: PrecheckFacts) -> None:
    if not facts.path.probed:
        raise FactMissing("the data path was not tried")


@rule("path.read", "the mover can read the source", Severity.BLOCK, catalogue=(74, 77), stages=RUN)
def read(facts: PrecheckFacts) -> Answer:
    """Real bytes of the source's disk were read on the way that the copy will take.

    A source that gives disks of stopped VMs only cannot be tried while the VM runs.
    """
    _probed(facts)
    if not facts.path.reads_source:
        if the_vm(facts).power is not Power.OFF and not source_can(facts).live_points:
            raise FactMissing(f"whether {facts.plan.source} can be read: it gives disks of stopped VMs only")
        return found(
            f"no bytes from {facts.plan.source}: {facts.path.why_not or 'no reason given'}",
            "open the way from the worker to the source's data port (firewall, TLS files), then run precheck again",
        )
    return ok("bytes were read from the source")


@rule("path.write", "the mover can write the target", Severity.BLOCK, catalogue=(74, 77), stages=RUN)
def write(facts: PrecheckFacts) -> Answer:
    """Real bytes were written to the target on the way that the copy will take."""
    _probed(facts)
    if not facts.path.writes_target:
        return found(
            f"no bytes to {facts.plan.target}: {facts.path.why_not or 'no reason given'}",
            "open the way from the worker to the target's data port (firewall, TLS files), then run precheck again",
        )
    return ok("bytes were written to the target")


@rule("path.bandwidth", "the path is fast enough to be useful", Severity.WARN, catalogue=(74,), stages=START)
def bandwidth(facts: PrecheckFacts) -> Answer:
    """The measured rate, or the plan's own limit, is at least 10 MiB/s."""
    rate, limit = link_bytes_per_s(facts), facts.plan.bandwidth_bytes_per_s
    limited = limit is not None and rate >= limit
    if rate < SLOW_BYTES_PER_S:
        return found(
            f"the path carries {rate_text(rate)}{' (the limit of the plan)' if limited else ''}",
            "raise bandwidth_bytes_per_s"
            if limited
            else "run the worker nearer to the storage, or use a faster network",
        )
    return ok(f"{rate_text(rate)}{' (the limit of the plan)' if limited else ''}")


@rule("path.latency", "the path answers quickly", Severity.WARN, catalogue=(74, 77), stages=START)
def latency(facts: PrecheckFacts) -> Answer:
    """One small read takes at most 50 ms."""
    if facts.path.latency_s is None:
        raise FactMissing("the latency was not measured")
    if facts.path.latency_s > SLOW_LATENCY_S:
        return found(
            f"one small read takes {duration_text(facts.path.latency_s)}",
            "raise lanes in the plan to have more requests under way, or run the worker nearer",
        )
    return ok(duration_text(facts.path.latency_s))


@rule("path.tools", "the mover's tools run", Severity.BLOCK, catalogue=(73,), stages=START)
def tools(facts: PrecheckFacts) -> Answer:
    """Every program that the mover uses told its version."""
    if not facts.path.tools:
        raise FactMissing("the versions of the mover's tools")
    dead = sorted(name for name, version in facts.path.tools.items() if not version)
    if dead:
        return found(f"cannot be run on the worker: {listed(dead)}", "install it there; 'whimbrel doctor' tells how")
    return ok(listed([f"{name} {version}" for name, version in sorted(facts.path.tools.items())]))


@rule("path.state-space", "the worker has room for its manifests", Severity.BLOCK, catalogue=(61,), stages=START)
def state_space(facts: PrecheckFacts) -> Answer:
    """Manifests of block digests take at most 0.5 MiB for each GiB of disk on the worker."""
    free = facts.path.state_free_bytes
    if free is None:
        raise FactMissing("the free space of the worker's state directory")
    need = int(sum(disk.size_bytes for disk in the_vm(facts).disks) * MANIFEST_RATIO)
    if need > free:
        return found(
            f"manifests may take {bytes_text(need)}, {bytes_text(free)} are free",
            "free space in the worker's state directory, or move it to a larger file system",
        )
    return ok(f"at most {bytes_text(need)} needed, {bytes_text(free)} free")


@rule("path.balance", "the target keeps up with the source", Severity.INFO, catalogue=(77,), stages=START)
def balance(facts: PrecheckFacts) -> Answer:
    """Tells which end is the slower one, as that is where tuning helps."""
    the_target(facts)
    reading, writing = facts.path.read_bytes_per_s, facts.path.write_bytes_per_s
    if not reading or not writing:
        raise FactMissing("the rates of both ends")
    if writing < reading / 4:
        return found(
            f"the target writes {rate_text(writing)}, the source reads {rate_text(reading)}",
            "look at the target's storage: it holds the copy up",
        )
    return ok(f"source reads {rate_text(reading)}, target writes {rate_text(writing)}")


RULES = (
    different,
    source_api,
    target_api,
    clocks,
    versions,
    read,
    write,
    bandwidth,
    balance,
    latency,
    tools,
    state_space,
)
