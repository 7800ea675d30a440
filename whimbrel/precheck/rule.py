"""A rule: a pure function over the facts, with its id, severity, stages and place in the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getdoc
from typing import Literal

from whimbrel.model.finding import Finding, PrecheckFacts, Severity

Stage = Literal["plan", "start", "cutover"]
ALWAYS: frozenset[Stage] = frozenset({"plan", "start", "cutover"})
BEFORE: frozenset[Stage] = frozenset({"plan", "start"})
"""Answered from the inventory; nothing of it changes through the copying."""
START: frozenset[Stage] = frozenset({"start"})
RUN: frozenset[Stage] = frozenset({"start", "cutover"})
"""Needs what was measured on the data path, so it cannot be told while planning."""


class FactMissing(Exception):
    """A rule cannot be judged: the message says which fact is missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one rule says. ``severity`` replaces the rule's own where the case is milder or worse."""

    outcome: Literal["ok", "found"]
    found: str
    action: str = ""
    severity: Severity | None = None


def ok(text: str) -> Answer:
    """Nothing to object; ``text`` says what was seen."""
    return Answer("ok", text)


def found(text: str, action: str, severity: Severity | None = None) -> Answer:
    """Something is in the way: what it is, and what the operator can do."""
    return Answer("found", text, action, severity)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the list that ``docs/prechecks.md`` shows."""

    id: str
    title: str
    severity: Severity
    catalogue: tuple[int, ...]
    """Numbers in the catalogue of checks that comparable systems make; empty: seen in none of them."""
    stages: frozenset[Stage]
    judge: Callable[[PrecheckFacts], Answer]

    @property
    def explanation(self) -> str:
        """The docstring of the rule's function."""
        return " ".join((getdoc(self.judge) or "").split())

    def __call__(self, facts: PrecheckFacts) -> Finding:
        """This rule's finding; never raises. A missing fact or a fault in the rule gives ``unknown``."""
        try:
            answer = self.judge(facts)
        except FactMissing as missing:
            return Finding(rule=self.id, severity=self.severity, outcome="unknown", found=f"not known: {missing}")
        except Exception as fault:  # noqa: BLE001 - one faulty rule must not take the other answers away
            return Finding(
                rule=self.id,
                severity=self.severity,
                outcome="unknown",
                found=f"the rule itself failed: {type(fault).__name__}: {fault}"[:500],
                action=f"report this as a fault of the rule {self.id}; check by hand: {self.title}",
            )
        return Finding(
            rule=self.id,
            severity=answer.severity or self.severity,
            outcome=answer.outcome,
            found=answer.found,
            action=answer.action,
        )


def rule(
    rule_id: str,
    title: str,
    severity: Severity,
    *,
    catalogue: tuple[int, ...] = (),
    stages: frozenset[Stage] = BEFORE,
) -> Callable[[Callable[[PrecheckFacts], Answer]], Rule]:
    """Make a rule of the decorated function; its docstring becomes the documentation."""

    def bind(judge: Callable[[PrecheckFacts], Answer]) -> Rule:
        return Rule(rule_id, title, severity, catalogue, stages, judge)

    return bind
