"""The mode that is suggested for a VM, and that the reason names what decided it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.precheck.healthy import facts
from whimbrel.model.vm import Power
from whimbrel.precheck.suggest import suggest_mode


@pytest.mark.parametrize(
    ("changes", "mode", "why"),
    [
        ({}, "incremental", "running, 8 GiB; changes of every disk are tracked"),
        ({"source__vm__power": Power.OFF}, "cold", "the VM is off"),
        ({"source__vm__power": Power.PAUSED}, "cold", "the VM is paused"),
        ({"source__capabilities__live_points": False}, "cold", "cannot open points in time"),
        ({"source__capabilities__change_tracking": False}, "incremental", "reads and hashes all"),
        ({"source__vm__disks__1__trackable": False}, "incremental", "without tracking: vdb (3 GiB a round)"),
        (
            {"source__vm__disks__0__trackable": False, "source__vm__disks__1__trackable": False},
            "incremental",
            "no change tracking",
        ),
        ({"source__vm__disks__0__shareable": True}, "cold", "vda may be written by other VMs"),
    ],
)
def test_suggestion(changes: dict[str, Any], mode: str, why: str) -> None:
    given = facts(**changes).source
    assert given.vm is not None
    assert given.capabilities is not None
    suggested, reason = suggest_mode(given.vm, given.capabilities)
    assert suggested == mode
    assert why in reason
    assert "\n" not in reason
