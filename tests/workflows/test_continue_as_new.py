"""Rounds over weeks: a run is continued as new, and nothing that matters is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.workflows.bench import MIB, Migrated, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.model.progress import MigrationReport, MigrationStatus

Run = Callable[..., Any]
MAX_EVENTS = 5000


async def _runs(migrated: Migrated) -> list[int]:
    """Events of every run of the chain, oldest first."""
    run_id: str | None = migrated.handle.first_execution_run_id
    lengths = []
    client = migrated.handle._client
    while run_id:
        following = ""
        count = 0
        async for event in client.get_workflow_handle(migrated.handle.id, run_id=run_id).fetch_history_events():
            count += 1
            if event.HasField("workflow_execution_continued_as_new_event_attributes"):
                following = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        lengths.append(count)
        run_id = following
    return lengths


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [24, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_state_is_carried_over(orchestrator: Orchestrator, run: Run, rounds: int) -> None:
    """Round numbers, totals, undo, ledger and wishes of the operator survive; each history stays short."""
    orchestrator.source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(MIB))
    before = orchestrator.before("app01")

    async def story() -> tuple[MigrationReport, MigrationStatus, list[int]]:
        plan = orchestrator.plan("app01", rounds={"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.1})
        migrated = await orchestrator.start(plan)
        await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=7e8)
        now = await migrated.until(lambda now: now.rounds_done > rounds, timeout_s=500)
        await migrated.say(verbs.CUTOVER)
        report = await migrated.report()
        return report, now, await _runs(migrated)

    with orchestrator.source.scribbling("app01", "vda", seed=3, pause_s=0.05):
        report, seen, runs = run(story(), 560)
    orchestrator.assert_moved(report, before)
    assert len(runs) >= 2
    assert max(runs) < MAX_EVENTS
    numbers = [each.number for each in report.status.rounds]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert report.status.rounds_done > rounds
    assert report.status.bandwidth_bytes_per_s == 7e8
    assert report.bytes_sent >= sum(each.sent_bytes for each in report.status.rounds)
    assert seen.started_at == report.status.started_at
    assert seen.migration == report.status.migration


def test_a_rollback_after_it_undoes_what_the_first_run_made(orchestrator: Orchestrator, run: Run) -> None:
    """The undo steps and the ledger of the first run are those of the last; a pause is carried over too."""
    orchestrator.source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    before = orchestrator.before("app01")

    async def story() -> tuple[MigrationReport, list[int]]:
        plan = orchestrator.plan("app01", rounds={"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.1})
        migrated = await orchestrator.start(plan)
        first = migrated.handle.first_execution_run_id
        while (await migrated.handle.describe()).run_id == first:
            await migrated.until(lambda now: now.rounds_done > 3)
        await migrated.say(verbs.PAUSE)
        await migrated.say(verbs.ABORT)
        report = await migrated.report()
        return report, await _runs(migrated)

    report, runs = run(story())
    assert len(runs) >= 2
    orchestrator.assert_given_back(report, before)
