"""Hours and days, skipped: the confirm gate's timer, windows, long intervals, and an undo that fails for a day."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import Throttled
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]


def _vm(orchestrator: Orchestrator) -> Before:
    orchestrator.source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(MIB))
    return orchestrator.before("app01")


@pytest.mark.parametrize("mode", ["incremental", "cold"])
@pytest.mark.parametrize("then", ["auto_confirm", "auto_rollback"])
def test_the_gate_ends_by_its_timer(orchestrator: Orchestrator, run: Run, then: str, mode: str) -> None:
    before = _vm(orchestrator)
    plan = orchestrator.plan("app01", mode=mode, confirm={"after_s": 72 * 3600.0, "then": then})
    report = run(orchestrator.migrate(plan, skip=True))
    if then == "auto_confirm":
        orchestrator.assert_moved(report, before)
    else:
        orchestrator.assert_given_back(report, before)
    assert report.status.now - report.status.started_at >= timedelta(hours=72)
    assert then in next(step.detail for step in report.status.steps if step.name == "confirm gate")


def test_a_window_that_opens_tomorrow(orchestrator: Orchestrator, run: Run) -> None:
    """Rounds go on until then, hourly; the cutover begins in the window and not before."""
    before = _vm(orchestrator)
    opens = datetime.now(UTC) + timedelta(hours=5)
    plan = orchestrator.plan(
        "app01",
        window={"opens_at": opens, "closes_at": opens + timedelta(hours=2)},
        rounds={"min_interval_s": 3600.0, "max_interval_s": 3600.0},
    )
    report = run(orchestrator.migrate(plan, skip=True))
    orchestrator.assert_moved(report, before)
    assert report.status.outage is not None
    assert opens <= report.status.outage.stop_requested_at < opens + timedelta(hours=2)
    assert 4 <= report.status.rounds_done <= 9


def test_a_window_that_has_closed(orchestrator: Orchestrator, run: Run) -> None:
    """No cutover any more, not by the plan and not by hand; the operator is told, and may abort."""
    before = _vm(orchestrator)
    closes = datetime.now(UTC) - timedelta(minutes=1)

    async def story() -> MigrationReport:
        plan = orchestrator.plan(
            "app01",
            window={"closes_at": closes},
            ignore=("window.open", "window.length"),
            rounds={"min_interval_s": 3600.0, "max_interval_s": 3600.0},
        )
        migrated = await orchestrator.start(plan)
        now = await migrated.until(lambda now: now.trouble is not None)
        assert now.trouble is not None
        assert now.trouble.code == "WindowClosed"
        assert "window has closed" in await migrated.refused(verbs.CUTOVER)
        assert verbs.CUTOVER not in now.trouble.choices
        await migrated.say(verbs.ABORT)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
    assert orchestrator.source.calls_of("compute.request_stop") == []


def test_rounds_that_never_fit_the_budget_wait_or_cut_over(orchestrator: Orchestrator, run: Run) -> None:
    """A budget below the boot time never fits: after ``max_rounds`` the plan's policy decides."""
    before = _vm(orchestrator)
    policy = {"outage_budget_s": 1.0, "max_rounds": 3, "min_interval_s": 1800.0, "if_not_converging": "cutover"}
    report = run(orchestrator.migrate(orchestrator.plan("app01", rounds=policy), skip=True))
    orchestrator.assert_moved(report, before)
    assert report.status.rounds_done <= 6


def test_an_undo_that_fails_for_a_day_is_held(orchestrator: Orchestrator, run: Run) -> None:
    """Retried for 24 hours, then the operator is asked; the source has been running since the first minute."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", confirm={"then": "wait"}), skip=True)
        await migrated.phase(Phase.CONFIRM)
        stuck = orchestrator.fail("volume.remove", lambda: Throttled("busy", retry_after_s=9 * 3600), times=None)
        await migrated.say(verbs.ROLLBACK)
        now = await migrated.held()
        assert now.trouble is not None
        assert now.trouble.step == "undo: remove-volumes"
        assert stuck.struck >= 2
        assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING
        stuck.times = 0
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
