"""Stable names: of task queues, workflows, search attributes."""

from __future__ import annotations

CONTROL_QUEUE = "control"
"""Cloud calls and workflows."""


def data_queue(site: str) -> str:
    """Task queue of the movers near a site's storage."""
    return f"data-{site}"


INCREMENTAL = "IncrementalMigration"
COLD = "ColdMigration"
STREAMING = "StreamingMigration"
DUAL_ATTACH = "DualAttachMigration"
DRILL = "Drill"
PRECHECK = "Precheck"
WORKFLOW_OF_MODE = {
    "incremental": INCREMENTAL,
    "cold": COLD,
    "streaming": STREAMING,
    "dual-attach": DUAL_ATTACH,
}

STATUS_QUERY = "status"
LEDGER_QUERY = "ledger"
FINDINGS_QUERY = "findings"

SA_PHASE = "WhimbrelPhase"
SA_MODE = "WhimbrelMode"
SA_PLAN = "WhimbrelPlan"
SA_VM = "WhimbrelVm"
SA_PERCENT = "WhimbrelPercent"
SA_OUTAGE = "WhimbrelOutageSeconds"
SA_ATTENTION = "WhimbrelAttention"
SEARCH_ATTRIBUTES: dict[str, str] = {
    SA_PHASE: "Keyword",
    SA_MODE: "Keyword",
    SA_PLAN: "Keyword",
    SA_VM: "Keyword",
    SA_PERCENT: "Int",
    SA_OUTAGE: "Double",
    SA_ATTENTION: "Bool",
}
"""Name -> type, registered by the worker and by the dev server."""
