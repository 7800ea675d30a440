"""One expected answer of one rule."""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.model.finding import PrecheckFacts, Severity


@dataclass(frozen=True)
class Case:
    """One expected answer. ``says``: parts of ``found`` or ``action``; ``severity`` where it is not the rule's own."""

    rule: str
    outcome: str
    facts: PrecheckFacts
    says: tuple[str, ...] = ()
    severity: Severity | None = None


def case_found(rule: str, given: PrecheckFacts, *says: str, severity: Severity | None = None) -> Case:
    """The rule objects."""
    return Case(rule, "found", given, says, severity)


def case_unknown(rule: str, given: PrecheckFacts, *says: str) -> Case:
    """The facts to judge are missing."""
    return Case(rule, "unknown", given, says)


def case_ok(rule: str, given: PrecheckFacts, *says: str) -> Case:
    """The rule is content."""
    return Case(rule, "ok", given, says)
