"""All rules, and the run over them."""

from __future__ import annotations

from difflib import get_close_matches

from whimbrel.model.finding import Finding, PrecheckFacts, Severity
from whimbrel.precheck import (
    access,
    capacity,
    connectivity,
    disks,
    fit,
    handover,
    networks,
    placement,
    policy,
    quotas,
    source,
    streaming,
)
from whimbrel.precheck.known import listed
from whimbrel.precheck.rule import Answer, Rule, found, ok, rule


@rule("plan.ignore-known", "the plan ignores only rules that exist", Severity.WARN)
def ignore_known(facts: PrecheckFacts) -> Answer:
    """Every id under ``ignore`` names a rule; a misspelt one would accept nothing."""
    known = {one.id for one in RULES}
    wrong = [name for name in facts.plan.ignore if name not in known]
    if not wrong:
        return ok(f"{len(facts.plan.ignore)} rules are ignored")
    near = [close[0] for name in wrong if (close := get_close_matches(name, known, n=1))]
    return found(
        f"no such rules: {listed(wrong)}",
        f"did you mean {listed(near)}?" if near else "docs/prechecks.md lists the ids",
    )


RULES: tuple[Rule, ...] = (
    *connectivity.RULES,
    *access.RULES,
    *source.RULES,
    *disks.RULES,
    *networks.RULES,
    *capacity.RULES,
    *quotas.RULES,
    *placement.RULES,
    *fit.RULES,
    *policy.RULES,
    *handover.RULES,
    *streaming.RULES,
    ignore_known,
)

_ORDER = {
    ("found", Severity.BLOCK): 0,
    ("unknown", Severity.BLOCK): 1,
    ("found", Severity.WARN): 2,
    ("accepted", Severity.BLOCK): 3,
    ("unknown", Severity.WARN): 4,
    ("found", Severity.INFO): 5,
    ("unknown", Severity.INFO): 6,
}
"""Worst first; what is not named is ``ok`` and comes last."""


def run_rules(facts: PrecheckFacts) -> tuple[Finding, ...]:
    """One finding for each rule of the facts' stage, worst first; never raises.

    A blocking finding whose rule the plan's ``ignore`` lists becomes ``accepted``.
    """
    findings = [_accepted(_judged(one, facts), facts.plan.ignore) for one in RULES if facts.stage in one.stages]
    return tuple(sorted(findings, key=lambda finding: _ORDER.get((finding.outcome, finding.severity), 9)))


def _judged(one: Rule, facts: PrecheckFacts) -> Finding:
    """The rule's finding; a rule about copies has nothing to say where nothing is copied."""
    if facts.plan.mode == "dual-attach" and one.id in handover.ABOUT_COPIES:
        return Finding(rule=one.id, severity=one.severity, outcome="ok", found="mode dual-attach copies nothing")
    return one(facts)


def _accepted(finding: Finding, ignore: tuple[str, ...]) -> Finding:
    return finding.model_copy(update={"outcome": "accepted"}) if finding.blocks and finding.rule in ignore else finding
