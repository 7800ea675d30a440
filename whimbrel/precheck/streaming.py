"""Rules for VMs that run before their data is there, and for rehearsals."""

from __future__ import annotations

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import (
    data_bytes,
    link_bytes_per_s,
    listed,
    mapped_networks,
    now,
    source_can,
    target_can,
    the_vm,
)
from whimbrel.precheck.rule import BEFORE, RUN, START, Answer, FactMissing, found, ok, rule

SLOW_MISS_S = 0.010
"""A boot reads a few thousand times; at this latency its misses alone cost tens of seconds."""
SLOW_LINK_BYTES_PER_S = 10e6
INSTEAD = "use mode incremental, whose outage is a small last delta, or move the VM into a KVM cloud"


def copies_drill(facts: PrecheckFacts) -> bool:
    """Whether this is a drill that copies all data before it boots. Raises FactMissing."""
    if not facts.drill or facts.plan.drill.data == "stream":
        return False
    return facts.plan.drill.data == "copy" or not target_can(facts).serve_disks or target_can(facts).imports


def streams(facts: PrecheckFacts) -> bool:
    """Whether a streaming server will feed the target. Raises FactMissing."""
    if facts.drill:
        return not copies_drill(facts)
    return facts.plan.mode == "streaming"


@rule("stream.capable", "both clouds can stream", Severity.BLOCK)
def capable(facts: PrecheckFacts) -> Answer:
    """The target can run a VM on served disks and switch it to its own; the source keeps shadows if that is planned."""
    if copies_drill(facts):
        return ok("the drill copies all data before it boots")
    if not streams(facts):
        return ok("nothing is streamed")
    if not target_can(facts).serve_disks:
        why = target_can(facts).no_streaming
        return found(
            f"{facts.plan.target} ({target_can(facts).kind}) cannot run a VM on served disks"
            + (f": {why}" if why else ""),
            "set drill.data: auto, so that the data is copied" if facts.drill else INSTEAD,
        )
    protect = "none" if facts.drill else facts.plan.stream.protect
    if target_can(facts).imports:
        return _can_import(facts, protect)
    if protect != "none" and not source_can(facts).shadows:
        return found(
            f"{facts.plan.source} ({source_can(facts).kind}) cannot keep the target's writes (protect: {protect})",
            "set stream.protect: none, and accept that a rollback loses what the target wrote",
        )
    return ok(f"target serves disks; protect: {protect}")


def _can_import(facts: PrecheckFacts, protect: str) -> Answer:
    if facts.drill:
        return found(
            f"{facts.plan.target} imports volumes by its storage, and drills are not made for that",
            "set drill.data: auto, so that the data is copied",
        )
    if protect != "none":
        return found(
            f"the guest writes straight into the storage of {facts.plan.target} (protect: {protect})",
            "set stream.protect: none; a rollback brings the target's writes back all the same",
        )
    if facts.plan.stream.precopy:
        return found(
            f"volumes of {facts.plan.target} are imported whole, nothing can be copied before",
            "set stream.precopy: false, or use mode incremental, which ends with a small last delta",
        )
    return ok("the target's storage imports; a rollback brings the target's writes back")


@rule("stream.import", "the target's storage can import", Severity.BLOCK, stages=START)
def importable(facts: PrecheckFacts) -> Answer:
    """A small volume is imported from this mover and opened by the target's volume service, not by compute hosts."""
    if not streams(facts) or facts.drill or not target_can(facts).imports:
        return ok("nothing is imported")
    path = facts.path
    if path.import_blockers:
        return found(listed(path.import_blockers), INSTEAD)
    if path.import_tried is None:
        raise FactMissing(f"whether a volume can be imported: {path.why_not or 'not tried'}")
    if not path.import_tried:
        return found(
            f"a probe volume could not be imported: {path.import_why_not}",
            f"open the way from compute hosts and the volume service to gateway_address, any port; or {INSTEAD}",
        )
    return ok("a probe volume was imported from this mover, and opened by the target's volume service")


@rule("stream.target-file", "the mover opens the target's volumes", Severity.BLOCK, stages=START)
def target_file(facts: PrecheckFacts) -> Answer:
    """The streaming server writes the volume under its path: it must run on the VM's host, or see the same storage."""
    if not streams(facts):
        return ok("nothing is streamed")
    if target_can(facts).imports:
        return ok("the target's storage imports: no volume is opened here")
    if facts.path.target_file_seen is None:
        raise FactMissing(f"whether the mover sees the target's volumes: {facts.path.why_not or 'not tried'}")
    if not facts.path.target_file_seen:
        return found(
            "the mover cannot open a volume of the target under its path",
            "run a worker of this plan's site on the target VM's host, or give it the same storage, same path",
        )
    return ok("a probe volume was written through the cloud and read under its path")


@rule("stream.latency", "misses will be short", Severity.WARN, stages=START)
def latency(facts: PrecheckFacts) -> Answer:
    """Every block that the guest wants before it has arrived costs one round trip to the source."""
    if not streams(facts):
        return ok("nothing is streamed")
    if facts.path.latency_s is None:
        raise FactMissing("the latency of the path")
    text = f"a miss costs about {facts.path.latency_s * 1000:.1f} ms and more"
    if facts.path.latency_s > SLOW_MISS_S:
        return found(
            f"{text}: a boot with thousands of misses will be slow",
            "set stream.precopy: true, or run a drill first, so that its recorded reads are fetched ahead",
        )
    return ok(text)


@rule("stream.bandwidth", "the rest arrives in reasonable time", Severity.WARN, stages=START)
def bandwidth(facts: PrecheckFacts) -> Answer:
    """How long the target depends on the source, and how long a drill copies: all data at the measured rate."""
    if not (copied := copies_drill(facts)) and not streams(facts):
        return ok("nothing is streamed")
    link, total = link_bytes_per_s(facts), data_bytes(the_vm(facts))
    text = f"{bytes_text(total)} at {rate_text(link)} take about {duration_text(total / link)}"
    if copied:
        return ok(f"{text}, then the drill boots")
    if link < SLOW_LINK_BYTES_PER_S:
        return found(
            f"{text}; so long the target depends on the source and on the path",
            "set stream.precopy: true, so that only the last changes are streamed",
        )
    return ok(text)


@rule("stream.protect", "a rollback keeps the target's writes", Severity.WARN, stages=BEFORE)
def protected(facts: PrecheckFacts) -> Answer:
    """With ``protect: none`` a rollback goes back to the source as it was stopped."""
    if facts.drill or facts.plan.mode != "streaming":
        return ok("not a matter of this mode")
    if target_can(facts).imports:
        return ok("what the target writes is told by its storage, and brought back by a rollback")
    if facts.plan.stream.protect == "none":
        return found(
            "what the target writes before confirm is lost by a rollback (stream.protect: none)",
            "set stream.protect: mirror, if that matters; each write then waits for the source",
        )
    if facts.plan.stream.protect == "journal":
        policy = facts.plan.stream
        lag = f"{bytes_text(policy.max_lag_bytes)} or {duration_text(policy.max_lag_s)}"
        return ok(f"writes follow to the source, at most {lag} behind")
    return ok("each write is acknowledged when it is at the source too")


@rule("stream.history", "recorded reads can be fetched ahead", Severity.INFO, stages=START)
def history(facts: PrecheckFacts) -> Answer:
    """The reads of a drill tell what a boot needs first."""
    if not streams(facts) or not facts.plan.stream.prefetch:
        return ok("prefetch is not planned")
    if facts.path.traces == 0:
        return found(
            "no reads of this VM are recorded: prefetch can only follow what the guest does",
            "nothing, or run `whimbrel drill` before: its reads are kept",
        )
    return ok(f"{facts.path.traces} recorded traces")


@rule("drill.required", "a drill has passed", Severity.BLOCK, stages=RUN)
def required(facts: PrecheckFacts) -> Answer:
    """With ``require_drill`` the VM has a passed drill of at most that age."""
    wanted_s = facts.plan.require_drill_s
    if facts.drill or wanted_s is None:
        return ok("the plan requires no drill")
    action = "run `whimbrel drill` with this plan, and look at its report"
    if facts.path.drilled_at is None:
        return found(f"no passed drill is known, the plan requires {duration_text(wanted_s)}", action)
    age_s = (now(facts) - facts.path.drilled_at).total_seconds()
    if age_s > wanted_s:
        return found(
            f"the last passed drill is {duration_text(age_s)} old, the plan requires {duration_text(wanted_s)}",
            action,
        )
    return ok(f"passed {duration_text(max(age_s, 0.0))} ago")


@rule("drill.isolated", "the drill's networks have no way out", Severity.BLOCK)
def isolated_for_drill(facts: PrecheckFacts) -> Answer:
    """A rehearsal runs with the VM's own MAC and addresses: every network it is plugged into must be isolated."""
    if not facts.drill:
        return ok("not a drill")
    open_ones = sorted({network.name for _, network in mapped_networks(facts) if not network.isolated})
    if open_ones:
        return found(
            f"not isolated: {listed(open_ones)}",
            "map the VM's networks to isolated ones under drill.networks (libvirt: a <network> without <forward>)",
        )
    return ok("all networks of the drill are isolated")


RULES = (
    capable,
    importable,
    target_file,
    latency,
    bandwidth,
    protected,
    history,
    required,
    isolated_for_drill,
)
