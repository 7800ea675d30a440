"""Plans of handovers between the two OpenStack clouds of the lab."""

from __future__ import annotations

from typing import Any

from labs.openstack_stage import name_in_plans
from whimbrel.model.plan import VmPlan


def plan_of(vm: str, **changes: Any) -> VmPlan:
    """From a to b as administrators in the tenant's project, waiting for its operator at the end."""
    base: dict[str, Any] = {
        "plan": "handover",
        "vm": vm,
        "mode": "dual-attach",
        "source": name_in_plans("a", admin=True),
        "target": name_in_plans("b", admin=True),
        "networks": {"*": "wire"},
        "storage": {"shared": "shared"},
        "stop": {"graceful_timeout_s": 60.0},
        "health": {"checks": [{"kind": "console", "pattern": "WBREC1 kind=run"}], "timeout_s": 180.0},
    }
    return VmPlan.model_validate(base | changes)
