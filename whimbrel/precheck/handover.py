"""Rules of mode dual-attach: both clouds see the same disks on one storage, and nobody else is at them."""

from __future__ import annotations

from whimbrel.model.facts import HandoverFacts
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import disk_facts, listed, source_can, target_can, the_target, the_vm
from whimbrel.precheck.rule import BEFORE, Answer, FactMissing, found, ok, rule

ABOUT_COPIES = frozenset(
    {
        "disk.target-format",
        "disk.tracking",
        "disk.tracking-stale",
        "disk.tracking-foreign",
        "disk.internal-snapshots",
        "disk.sector-size",
        "disk.encrypted",
        "storage.free-space",
        "storage.headroom",
        "storage.plan-space",
        "storage.provisioning",
        "path.read",
        "path.write",
        "path.bandwidth",
        "path.latency",
        "path.balance",
        "path.state-space",
        "forecast.converges",
        "forecast.baseline",
        "window.reach",
        "verify.cost",
        "verify.no-outage",
        "keep-writes.tracked",
        "keep-writes.way-back",
    }
)
"""Rules that judge a copy, its target volumes or its way: nothing of that is there when disks change hands."""

OTHER_MODE = "only mode dual-attach hands disks over"


def _looked(facts: PrecheckFacts) -> HandoverFacts:
    """What both sides saw of the storage. Raises FactMissing."""
    the_vm(facts)
    the_target(facts)
    if not facts.handover.looked:
        raise FactMissing(facts.handover.why_not or "the storage was not looked at from both sides")
    return facts.handover


@rule("handover.possible", "both clouds can hand disks over", Severity.BLOCK)
def possible(facts: PrecheckFacts) -> Answer:
    """Both drivers can release and adopt disks, and could look at the VM's disks from both sides."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    able = {facts.plan.source: source_can(facts).handover, facts.plan.target: target_can(facts).handover}
    missing = [cloud for cloud, can in able.items() if not can]
    if missing:
        return found(f"cannot hand disks over: {listed(missing)}", "set mode: incremental or cold for this VM")
    if facts.handover.why_not:
        return found(
            f"the disks could not be looked at from both sides: {facts.handover.why_not}",
            "see that the VM's disks lie in storage pools of both clouds, then run precheck again",
        )
    return ok("both clouds can hand disks over")


@rule("handover.pools", "every image lies on mapped storage", Severity.BLOCK)
def pools(facts: PrecheckFacts) -> Answer:
    """Each image of every disk, backing images too, lies in a pool of the source that the plan maps to one there."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    outside = _looked(facts).outside
    if outside:
        return found(
            f"images outside of mapped pools: {listed(outside)}",
            "make the storage a pool on both clouds and map it under storage:, or choose another mode",
        )
    return ok("every image is in a mapped pool")


@rule("handover.same-storage", "both clouds see one storage", Severity.BLOCK)
def same_storage(facts: PrecheckFacts) -> Answer:
    """A note that the source wrote into each pool was read by the target in the pool that the plan maps it to."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    seen = _looked(facts)
    if seen.apart:
        return found(
            f"not the same storage: {listed(seen.apart)}",
            "mount the same directory or export on both clouds, map those pools to each other, or set mode: cold",
        )
    if not seen.marked:
        raise FactMissing("no note was written to the storage")
    return ok("notes of the source were read by the target")


@rule("handover.same-images", "the target sees the very same images", Severity.BLOCK)
def same_images(facts: PrecheckFacts) -> Answer:
    """By name, size, format and chain the target sees each disk as the source does."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    unlike = _looked(facts).unlike
    if unlike:
        return found(
            f"the target does not see them so: {listed(unlike)}",
            "refresh the target's pool; backing images must be reachable there under the path that the image names",
        )
    return ok("all images are there, whole")


@rule("handover.unopened", "nobody else has the disks open", Severity.BLOCK)
def unopened(facts: PrecheckFacts) -> Answer:
    """No other VM, session or host has an image open; both sides are asked, and locks on the images are looked at."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    openers = _looked(facts).openers
    if openers:
        return found(f"open in: {listed(openers)}", "end what has the disks open: two writers destroy a disk")
    return ok("only the VM itself may have them open")


@rule("handover.unused", "no VM at the target has the disks", Severity.BLOCK)
def unused(facts: PrecheckFacts) -> Answer:
    """No VM that is defined at the target names one of the images."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    users = _looked(facts).users
    if users:
        return found(
            f"VMs at the target that have an image: {listed(users)}",
            "remove these definitions there (virsh undefine keeps the images), or take the disks out of them",
        )
    return ok("no VM at the target has them")


@rule("handover.free", "no other migration has taken the disks", Severity.BLOCK)
def free(facts: PrecheckFacts) -> Answer:
    """The VM's disks were not released by another migration."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    taken = _looked(facts).taken
    if taken:
        return found(
            f"migration {taken} has taken the disks of this VM",
            "confirm or roll back that migration",
        )
    return ok("the disks are the VM's own")


@rule("handover.history", "the VM's snapshots and checkpoints may be left behind", Severity.BLOCK, stages=BEFORE)
def history(facts: PrecheckFacts) -> Answer:
    """Snapshots and other tools' checkpoints are known to the source's daemon only: without it they are dead weight."""
    if facts.plan.mode != "dual-attach":
        return ok(OTHER_MODE)
    the_vm(facts)
    kept = [*facts.source.snapshots, *(name for disk in disk_facts(facts) for name in disk.foreign_tracking)]
    if kept:
        return found(
            f"snapshots or checkpoints that would be orphaned: {listed(kept)}",
            "delete them, end the backup tool's chain, or accept this finding and lose them",
        )
    return ok("no snapshots, no checkpoints of other tools")


RULES = (possible, pools, same_storage, same_images, unopened, unused, free, history)
