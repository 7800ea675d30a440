"""What a precheck rule found."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from whimbrel.model.endpoint import Frozen
from whimbrel.model.facts import FitFacts, HandoverFacts, PathFacts, SourceFacts, TargetFacts
from whimbrel.model.plan import VmPlan
from whimbrel.model.vm import VmSpec


class Severity(StrEnum):
    """What a finding means for the migration."""

    BLOCK = "block"
    WARN = "warn"
    INFO = "info"


class Finding(Frozen):
    """One rule's answer. ``ok`` findings are kept too: they show what was checked."""

    rule: str
    """Stable id, ``<area>.<what>``: ``disk.chain-complete``."""
    severity: Severity
    outcome: Literal["ok", "found", "unknown", "accepted"]
    """``unknown``: the facts to judge are missing; ``accepted``: the plan's ``ignore`` lists the rule."""
    found: str
    action: str = ""

    @property
    def blocks(self) -> bool:
        """Whether this finding forbids the migration."""
        return self.severity is Severity.BLOCK and self.outcome == "found"

    @property
    def line(self) -> str:
        """One line for reports and logs: severity, rule, what was found, what to do."""
        mark = self.severity.value if self.outcome == "found" else f"{self.severity.value}, {self.outcome}"
        return f"{mark} {self.rule}: {self.found}" + (f" - {self.action}" if self.action else "")


class PrecheckFacts(Frozen):
    """All that the rules judge."""

    plan: VmPlan
    source: SourceFacts
    target: TargetFacts
    path: PathFacts
    handover: HandoverFacts = HandoverFacts()
    """Gathered for mode dual-attach only."""
    stage: Literal["plan", "start", "cutover"] = "start"
    drill: bool = False
    """A rehearsal: the source goes on running."""
    fit: FitFacts = FitFacts()
    companions: tuple[VmSpec, ...] | None = None
    """The VMs that the plan moves together with this one; None: not looked at."""


class PrecheckResult(Frozen):
    """All findings of one run, worst first."""

    findings: tuple[Finding, ...]
    path: PathFacts

    def blocking(self) -> tuple[Finding, ...]:
        """The findings that forbid the migration."""
        return tuple(finding for finding in self.findings if finding.blocks)
