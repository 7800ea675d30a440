"""Rules about the plan itself: will it converge, does it fit its window, and do its policies make sense together."""

from __future__ import annotations

from datetime import timedelta

from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.plan import CommandCheck
from whimbrel.model.vm import Power
from whimbrel.precheck.known import (
    baseline_s,
    data_bytes,
    dirty_bytes_per_s,
    link_bytes_per_s,
    listed,
    now,
    outage,
    read_rate,
    source_can,
    target_can,
    the_vm,
)
from whimbrel.precheck.rule import ALWAYS, RUN, START, Answer, FactMissing, found, ok, rule

LONG_S = 3600.0


@rule("forecast.converges", "rounds get smaller", Severity.WARN, catalogue=(24,), stages=START)
def converges(facts: PrecheckFacts) -> Answer:
    """The guest touches new blocks more slowly than the path carries them, so that rounds shrink."""
    if not facts.plan.runs_rounds or the_vm(facts).power is not Power.RUNNING:
        return ok("no rounds: the VM does not write during the copy")
    dirty, link = dirty_bytes_per_s(facts), link_bytes_per_s(facts)
    figures = f"the guest changes {rate_text(dirty)}, the path carries {rate_text(link)}"
    if dirty >= link * facts.plan.rounds.shrink_ratio:
        return found(
            f"{figures}: rounds will not get smaller",
            "raise the bandwidth, migrate in quieter hours, or plan a cold migration",
        )
    return ok(figures)


@rule("forecast.baseline", "the first copy ends soon", Severity.INFO, catalogue=(24,), stages=START)
def baseline(facts: PrecheckFacts) -> Answer:
    """Estimated time of the first full copy: what the disks hold at the measured rate; told when above an hour."""
    seconds, link = baseline_s(facts), link_bytes_per_s(facts)
    text = f"about {duration_text(seconds)} for {bytes_text(data_bytes(the_vm(facts)))} at {rate_text(link)}"
    if seconds > LONG_S:
        return found(
            f"the first copy takes {text}", "nothing, if there is time: the VM runs meanwhile in incremental mode"
        )
    return ok(text)


@rule("forecast.outage", "the outage fits its budget", Severity.WARN, catalogue=(82,), stages=START)
def outage_budget(facts: PrecheckFacts) -> Answer:
    """The outage to expect (stop, last changes, boot) against rounds.outage_budget_s."""
    made, budget = outage(facts), facts.plan.rounds.outage_budget_s
    text = (
        f"{duration_text(made.outage_s)} (stop {duration_text(made.stop_s)}, "
        f"{bytes_text(made.delta_bytes)} of changes {duration_text(made.delta_s)}, boot {duration_text(made.boot_s)})"
    )
    if made.outage_s <= budget:
        return ok(f"{text}, budget {duration_text(budget)}")
    if facts.plan.mode == "cold":
        return found(
            f"the VM is off for about {text}",
            "nothing, if that is acceptable; else set mode: incremental",
            Severity.INFO,
        )
    return found(
        f"expected outage {text} is above the budget of {duration_text(budget)}: the cutover will not begin by itself",
        "raise rounds.outage_budget_s or the bandwidth, or cut over by hand when you accept the outage",
    )


@rule("window.open", "the window has not ended", Severity.BLOCK, catalogue=(82,), stages=ALWAYS)
def window_open(facts: PrecheckFacts) -> Answer:
    """The plan's window lies in the future or is open now."""
    closes = facts.plan.window.closes_at
    if closes is None:
        return ok("the window has no end")
    left = (closes - now(facts)).total_seconds()
    if left <= 0:
        return found(f"the window closed {duration_text(-left)} ago", "give the plan another window")
    return ok(f"the window closes in {duration_text(left)}")


@rule("window.length", "the window is long enough for the outage", Severity.BLOCK, catalogue=(82,), stages=RUN)
def window_length(facts: PrecheckFacts) -> Answer:
    """What is left of the window is at least the outage to expect."""
    window = facts.plan.window
    if window.closes_at is None:
        return ok("the window has no end")
    begins = max(now(facts), window.opens_at) if window.opens_at else now(facts)
    length, need = (window.closes_at - begins).total_seconds(), outage(facts).outage_s
    if length < need:
        return found(
            f"the window leaves {duration_text(max(length, 0.0))}, the outage takes about {duration_text(need)}",
            "give the plan a longer window, or bring the outage down",
        )
    return ok(f"{duration_text(length)} for about {duration_text(need)}")


@rule("window.reach", "the first copy ends before the window does", Severity.WARN, catalogue=(82,), stages=START)
def window_reach(facts: PrecheckFacts) -> Answer:
    """Begun now, the first copy is done before the window closes; in mode cold nothing is copied before the cutover."""
    closes = facts.plan.window.closes_at
    if closes is None or not facts.plan.runs_rounds:
        return ok("nothing to be ready for")
    done = now(facts) + timedelta(seconds=min(baseline_s(facts), 10 * 365 * 86400.0))
    if done > closes:
        late = duration_text((done - closes).total_seconds())
        return found(f"the first copy ends about {late} after the window", "start earlier, or choose a later window")
    return ok(f"the first copy is done {duration_text((closes - done).total_seconds())} before the window closes")


@rule("stop.graceful", "the guest is asked before it is stopped", Severity.WARN, catalogue=(13,))
def graceful(facts: PrecheckFacts) -> Answer:
    """A guest that is powered off without being asked has to repair its file systems at the target."""
    stop = facts.plan.stop
    if stop.graceful_timeout_s == 0:
        return found(
            "the guest is powered off without being asked (stop.graceful_timeout_s: 0)", "give it time to shut down"
        )
    return ok(f"asked, {stop.then} after {duration_text(stop.graceful_timeout_s)}")


@rule("health.commands", "the plan's own commands can be run", Severity.BLOCK, catalogue=(83,), stages=RUN)
def commands(facts: PrecheckFacts) -> Answer:
    """Each program of a command check exists on the worker and may be executed."""
    wanted = [check.argv[0] for check in facts.plan.health.checks if isinstance(check, CommandCheck)]
    if not wanted:
        return ok("the plan has no commands of its own")
    unseen = [program for program in wanted if program not in facts.path.commands]
    if unseen:
        raise FactMissing(f"whether the worker can run {listed(unseen)}")
    dead = [program for program in wanted if not facts.path.commands[program]]
    if dead:
        return found(f"the worker cannot run {listed(dead)}", "install it on every worker, or correct health.checks")
    return ok(listed([facts.path.commands[program] for program in wanted]))


@rule("health.possible", "the health checks can be answered", Severity.BLOCK, catalogue=(13,))
def checks_possible(facts: PrecheckFacts) -> Answer:
    """Console and agent checks need a target that gives a console and an agent, and a guest that has one."""
    kinds = {check.kind for check in facts.plan.health.checks}
    if not kinds & {"console", "agent"}:
        return ok(f"checks: {listed(sorted(kinds)) or 'only that the VM runs'}")
    can, reasons = target_can(facts), []
    if "console" in kinds and not can.console:
        reasons.append(f"{facts.plan.target} gives no console")
    if "agent" in kinds and not can.guest_agent:
        reasons.append(f"{facts.plan.target} cannot talk to guest agents")
    the_vm(facts)
    if "agent" in kinds and not facts.source.agent_configured:
        reasons.append("the VM has no agent channel")
    if reasons:
        return found(f"a check can never pass: {listed(reasons)}", "use another kind of check in health.checks")
    return ok(f"checks: {listed(sorted(kinds))}")


@rule("health.timeouts", "the confirm gate waits for the health checks", Severity.WARN)
def gate_waits(facts: PrecheckFacts) -> Answer:
    """The gate's timer is longer than the health checks may take."""
    confirm, health = facts.plan.confirm, facts.plan.health
    if confirm.after_s is None or confirm.then == "wait":
        return ok("the gate waits for the operator")
    if confirm.after_s < health.timeout_s:
        return found(
            f"{confirm.then} after {duration_text(confirm.after_s)}, but health checks may take "
            f"{duration_text(health.timeout_s)}",
            "raise confirm.after_s above health.timeout_s",
        )
    return ok(f"{confirm.then} after {duration_text(confirm.after_s)}")


@rule("confirm.checked", "nothing is confirmed unseen", Severity.WARN)
def confirm_checked(facts: PrecheckFacts) -> Answer:
    """A timer that confirms by itself needs a health check that would notice a guest that is up but does not work."""
    if facts.plan.confirm.then == "auto_confirm" and not facts.plan.health.checks:
        return found(
            "the target is confirmed by a timer, and only that it runs is checked",
            "add a health check (tcp, console, agent, command), or set confirm.then: wait",
        )
    return ok(f"confirm.then is {facts.plan.confirm.then}, {len(facts.plan.health.checks)} health checks")


@rule("verify.cost", "the final comparison is short", Severity.INFO, stages=START)
def verify_cost(facts: PrecheckFacts) -> Answer:
    """Estimated time to read both sides for the final comparison; told when above an hour."""
    verify = facts.plan.verify
    share = verify.sample_fraction if verify.mode == "sampled" else 1.0
    count = data_bytes(the_vm(facts)) * share
    seconds = count / min(read_rate(facts), facts.path.write_bytes_per_s or read_rate(facts))
    text = f"about {duration_text(seconds)} for {bytes_text(count)} ({verify.mode}, {verify.when.replace('_', ' ')})"
    if seconds > LONG_S:
        return found(f"the final comparison takes {text}", "set verify.mode: sampled if that is too long")
    return ok(text)


@rule("verify.no-outage", "the final comparison costs no outage", Severity.WARN)
def verify_when(facts: PrecheckFacts) -> Answer:
    """Comparing after the boot needs the target's state before its first write; before the boot it is outage."""
    if facts.plan.verify.when == "before_boot":
        return found(
            "the comparison runs before the boot and adds its whole time to the outage",
            "set verify.when: after_boot unless nothing may run before it is proved",
            Severity.INFO,
        )
    can = target_can(facts)
    if not can.start_paused and not can.points_outlive_start:
        return found(
            f"{facts.plan.target} cannot keep a VM's state before its first write: nothing to compare with later",
            "set verify.when: before_boot",
        )
    return ok("compared with a point in time before the target's first write")


@rule("keep-writes.tracked", "the target's writes are tracked", Severity.INFO)
def keep_writes(facts: PrecheckFacts) -> Answer:
    """With keep_writes a rollback brings the target's writes back; without tracking there it compares whole disks."""
    if not facts.plan.keep_writes:
        return ok("keep_writes is off: a rollback drops what the target wrote")
    can = target_can(facts)
    raw = [
        disk.key
        for disk in the_vm(facts).disks
        if facts.plan.disk_format == "raw" or (facts.plan.disk_format == "keep" and disk.format == "raw")
    ]
    if not can.change_tracking or raw:
        which = listed(raw) if can.change_tracking else "every disk"
        return found(
            f"no tracking at the target for {which}: a rollback compares whole disks",
            "set disk_format: qcow2 for a short rollback" if can.change_tracking else "allow for a long rollback",
        )
    return ok("writes at the target are tracked for the way back")


@rule("keep-writes.way-back", "the way back can be written", Severity.BLOCK)
def way_back(facts: PrecheckFacts) -> Answer:
    """With keep_writes both clouds have both roles: the target is read, and every disk of the source can be written."""
    if not facts.plan.keep_writes:
        return ok("keep_writes is off")
    missing = []
    if "source" not in target_can(facts).roles:
        missing.append(f"{facts.plan.target} cannot be read as a source")
    if "target" not in source_can(facts).roles:
        missing.append(f"{facts.plan.source} cannot be written as a target")
    fixed = [disk.key for disk in facts.source.disks if not disk.writable]
    if fixed:
        missing.append(f"{listed(fixed)} cannot be written while the VM at {facts.plan.source} has them")
    if missing:
        return found(listed(missing), "set keep_writes: false: a rollback then drops what the target wrote")
    return ok("both clouds can be read and written")


RULES = (
    converges,
    baseline,
    outage_budget,
    window_open,
    window_length,
    window_reach,
    graceful,
    commands,
    checks_possible,
    gate_waits,
    confirm_checked,
    verify_cost,
    verify_when,
    keep_writes,
    way_back,
)
