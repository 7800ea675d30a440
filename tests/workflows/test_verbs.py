"""The operator's verbs on running migrations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError

from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.contracts.names import SA_MODE, SA_PHASE, SA_VM
from whimbrel.contracts.verbs import Verb, VerbAnswer
from whimbrel.errors import Conflict
from whimbrel.model.progress import MigrationReport, Phase

Run = Callable[..., Any]
BIG = 24 * MIB


def _vm(orchestrator: Orchestrator, size: int = 4 * MIB) -> Before:
    orchestrator.source.add_vm("app01", disks=((size, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(size))
    return orchestrator.before("app01")


def test_pause_in_the_baseline_stops_the_copy_and_resume_goes_on(orchestrator: Orchestrator, run: Run) -> None:
    """Nothing moves while paused, and what was copied is not read twice."""
    before = _vm(orchestrator, BIG)

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", bandwidth_bytes_per_s=2.0 * MIB, rounds={"cutover": "manual"})
        migrated = await orchestrator.start(plan)
        await migrated.phase(Phase.BASELINE)
        await _half_way(orchestrator)
        await migrated.say(verbs.PAUSE)
        paused = await migrated.status()
        assert paused.paused
        assert "paused already" in await migrated.refused(verbs.PAUSE)
        assert "resume first" in await migrated.refused(verbs.CUTOVER)
        await _still(orchestrator)
        copied = _copied(orchestrator)
        assert 0 < copied < BIG
        await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=None)
        await migrated.say(verbs.RESUME)
        assert "neither paused" in await migrated.refused(verbs.RESUME)
        now = await migrated.phase(Phase.ROUNDS)
        # Over all attempts; what was in flight at the stop may be read once more.
        assert now.rounds[0].read_bytes <= BIG + 8 * MIB
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def _copied(orchestrator: Orchestrator) -> int:
    """Bytes of the target volume that are not zeros any more."""
    state = orchestrator.target._state
    return sum(len(volume.disk.allocated()) * 65536 for volume in state.volumes.values())


async def _half_way(orchestrator: Orchestrator) -> None:
    for _ in range(5000):
        if _copied(orchestrator) >= 2 * MIB:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nothing was copied")


async def _still(orchestrator: Orchestrator) -> None:
    """Wait until nothing is written for half a second."""
    last, same = -1, 0
    for _ in range(1000):
        now = _copied(orchestrator)
        same = same + 1 if now == last else 0
        if same >= 5:
            return
        last = now
        await asyncio.sleep(0.1)
    raise AssertionError("the copy did not stop")


def test_a_rollback_while_a_paused_copy_is_stopping(orchestrator: Orchestrator, run: Run) -> None:
    """The two verbs in one breath: the rollback counts."""
    before = _vm(orchestrator, BIG)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", bandwidth_bytes_per_s=2.0 * MIB))
        await migrated.phase(Phase.BASELINE)
        await _half_way(orchestrator)
        await asyncio.gather(migrated.say(verbs.PAUSE), migrated.say(verbs.ROLLBACK), return_exceptions=True)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)


def test_another_bandwidth_reaches_the_running_copy(orchestrator: Orchestrator, run: Run) -> None:
    """At the first limit the copy would take minutes; lifted, it is done at once."""
    before = _vm(orchestrator, BIG)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", bandwidth_bytes_per_s=0.1 * MIB))
        await migrated.phase(Phase.BASELINE)
        await orchestrator_started(orchestrator, "copy.disk")
        assert "100.0 MB/s" in await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=100e6)
        assert (await migrated.status()).bandwidth_bytes_per_s == 100e6
        assert "none" in await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=None)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)
    assert orchestrator.started().count("copy.disk") >= 3


async def orchestrator_started(orchestrator: Orchestrator, activity: str) -> None:
    for _ in range(5000):
        if activity in orchestrator.started():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{activity} did not begin")


def test_sync_now_and_pause_in_the_rounds(orchestrator: Orchestrator, run: Run) -> None:
    """With an hour between rounds the operator's word begins one; paused, none begins; then a manual cutover."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        plan = orchestrator.plan(
            "app01", rounds={"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0}
        )
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done == 2)
        orchestrator.source.scribble("app01", "vda", seed=1)
        await migrated.say(verbs.SYNC_NOW)
        now = await migrated.until(lambda now: now.rounds_done == 3)
        assert now.rounds[-1].sent_bytes > 0
        await migrated.say(verbs.PAUSE)
        assert "paused" in await migrated.refused(verbs.SYNC_NOW)
        await migrated.say(verbs.RESUME)
        await migrated.say(verbs.SYNC_NOW)
        await migrated.until(lambda now: now.rounds_done >= 4)
        assert "nothing to confirm" in await migrated.refused(verbs.CONFIRM)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert report.forecasts
    assert report.status.score is not None


def test_a_cutover_asked_for_during_the_baseline_is_remembered(orchestrator: Orchestrator, run: Run) -> None:
    """Manual mode: the wish outlives the baseline and begins the cutover without a round between."""
    before = _vm(orchestrator)
    held = orchestrator.hold("copy.disk")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await orchestrator.reached(held)
        await migrated.say(verbs.CUTOVER)
        await migrated.say(verbs.CUTOVER)
        held.open()
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert [each.kind for each in report.status.rounds] == ["baseline", "final"]


def test_a_pause_as_the_last_round_closes_keeps_the_guest_running(orchestrator: Orchestrator, run: Run) -> None:
    """The automatic cutover does not begin behind a pause."""
    before = _vm(orchestrator)
    held = orchestrator.hold("point.close", fits=lambda wanted: wanted.key.endswith("0002"))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01"))
        await orchestrator.reached(held)
        await migrated.say(verbs.PAUSE)
        held.open()
        await migrated.until(lambda now: now.rounds_done == 2)
        await asyncio.sleep(1.0)
        now = await migrated.status()
        assert (now.phase, now.paused, now.outage) == (Phase.ROUNDS, True, None)
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_the_same_update_twice_is_one(orchestrator: Orchestrator, run: Run) -> None:
    """A client that lost the answer asks again by the same id and gets the first answer, not a refusal."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await migrated.phase(Phase.ROUNDS)
        answers = [
            await migrated.handle.execute_update(verbs.PAUSE, Verb(), id="pause-1", result_type=VerbAnswer)
            for _ in range(2)
        ]
        assert answers[0] == answers[1]
        with pytest.raises(WorkflowUpdateFailedError):
            await migrated.say(verbs.PAUSE)
        await migrated.say(verbs.ABORT, by="ops")
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before)
    assert report.reason == "aborted by the operator (ops)"


def test_confirm_and_what_temporal_shows(orchestrator: Orchestrator, run: Run) -> None:
    """The gate waits for the operator; search attributes name phase, mode and VM."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(
            orchestrator.plan("app01", confirm={"after_s": 3600, "then": "auto_rollback"})
        )
        now = await migrated.phase(Phase.CONFIRM)
        assert now.confirm_deadline is not None
        described = await migrated.handle.describe()
        shown = {pair.key.name: pair.value for pair in described.typed_search_attributes}
        assert (shown[SA_PHASE], shown[SA_MODE], shown[SA_VM]) == ("confirm", "incremental", "app01")
        for verb in (verbs.PAUSE, verbs.CUTOVER, verbs.SYNC_NOW, verbs.RESUME, verbs.ABORT):
            assert verb in await migrated.refused(verb)
        await migrated.say(verbs.CONFIRM)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert report.status.health == ("VM runs",)


def test_verbs_while_it_waits_for_the_operator(orchestrator: Orchestrator, run: Run) -> None:
    """Held in the rounds: ``cutover`` both tries again and begins the cutover, ``pause`` is refused."""
    before = _vm(orchestrator)
    orchestrator.fail("copy.disk", lambda: Conflict("locked"), fits=lambda job: job.kind == "delta")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await migrated.held("Conflict")
        assert "phase attention" in await migrated.refused(verbs.PAUSE)
        await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=1e9)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)
