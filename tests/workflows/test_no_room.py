"""A cloud that has no room for the target's server when it is to start: the source goes on, what was copied is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import GuestUnbootable, QuotaExceeded
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[[Coroutine[Any, Any, MigrationReport]], MigrationReport]
MANUAL = {"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0}


def _vm(orchestrator: Orchestrator) -> Before:
    """At a target that makes a server only by starting it, as Nova does."""
    orchestrator.target.set_capabilities(start_paused=False, points_outlive_start=True)
    orchestrator.source.add_vm("app01", disks=((4 * MIB, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 65536, os.urandom(2 * MIB))
    return orchestrator.before("app01")


@pytest.mark.parametrize("keep_writes", [True, False], ids=["keep", "drop"])
def test_the_cutover_is_taken_back(orchestrator: Orchestrator, run: Run, *, keep_writes: bool) -> None:
    """The target has not run, so there is nothing of it to be brought back; the next cutover sends the rest only."""
    before = _vm(orchestrator)
    full = lambda: QuotaExceeded("Quota exceeded for instances", action="raise the quota, then resume")  # noqa: E731
    orchestrator.fail("compute.start", full, fits=lambda wanted: wanted.cloud.startswith("dst"))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds=MANUAL, keep_writes=keep_writes))
        await migrated.until(lambda now: now.rounds_done == 2)
        await migrated.say(verbs.CUTOVER)
        now = await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
        assert now.trouble is not None
        assert (now.trouble.code, now.trouble.action) == ("QuotaExceeded", "raise the quota, then resume")
        assert verbs.CUTOVER in now.trouble.choices
        target = MemoryCloud(orchestrator.target_name)
        assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING
        assert target.compute.inventory() == []
        assert len(target.volumes.owned(now.migration)) == 1
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    baseline, later = report.status.rounds[0], report.status.rounds[1:]
    assert sum(each.sent_bytes for each in later) < baseline.sent_bytes


def test_a_cold_migration_asks_and_keeps_its_copy(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)
    orchestrator.fail("compute.start", lambda: QuotaExceeded("no room"), fits=lambda wanted: wanted.cloud[:3] == "dst")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", mode="cold"))
        await migrated.held("QuotaExceeded")
        assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_a_target_that_may_have_run_is_still_given_up_with_its_copy(orchestrator: Orchestrator, run: Run) -> None:
    """Any other failure of the start leaves open whether the guest wrote."""
    before = _vm(orchestrator)
    orchestrator.fail("compute.start", lambda: GuestUnbootable("in state ERROR"), fits=lambda on: on.cloud[:3] == "dst")
    report = run(orchestrator.migrate(orchestrator.plan("app01")))
    orchestrator.assert_given_back(report, before)
    assert "in state ERROR" in report.reason
