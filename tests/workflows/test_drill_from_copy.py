"""Drills from a running migration's copy: lent between rounds, given back, taken back before the cutover."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from drivers.memory.state import cloud_state
from tests.workflows.bench import MIB, SETTLE_S, Migrated, Orchestrator
from tests.workflows.drills import rehearsed_vm, the_record
from whimbrel.contracts import verbs
from whimbrel.contracts.lending import (
    COPY_RECALLED_SIGNAL,
    COPY_RETURNED_SIGNAL,
    COPY_WANTED_SIGNAL,
    CopyReturned,
    CopyWanted,
)
from whimbrel.errors import Conflict, Unavailable, Unsupported
from whimbrel.model.progress import MigrationReport, Phase

Run = Callable[..., Any]
ROUNDS = {"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.2}
WAITING = {"cutover": "manual", "min_interval_s": 600.0, "max_interval_s": 600.0}
# Its checks are held while rounds go on, which takes a while on a busy machine.
DRILL = {"networks": {"*": "drill-net"}, "timeout_s": 240.0, "hydrate": True}


def _plan(orchestrator: Orchestrator, **changes: Any) -> Any:
    return orchestrator.plan("app01", **{"drill": DRILL, "rounds": ROUNDS, **changes})


def _frozen(orchestrator: Orchestrator) -> list[str]:
    """Points that are frozen at the target now."""
    state = cloud_state(orchestrator.target_name)
    with state.lock:
        return [writer.frozen.key for writer in state.writers.values() if writer.frozen is not None]


async def _thawed(orchestrator: Orchestrator, migrated: Migrated) -> None:
    await migrated.until(lambda _: _frozen(orchestrator) == [])


async def _recalled(drill: Migrated) -> None:
    """Wait until the drill has been told that the copy is taken back."""
    async with asyncio.timeout(SETTLE_S):
        while COPY_RECALLED_SIGNAL not in [  # noqa: ASYNC110 - another workflow
            event.workflow_execution_signaled_event_attributes.signal_name
            async for event in drill.handle.fetch_history_events()
        ]:
            await asyncio.sleep(0.1)


async def _cut_over(migrated: Migrated) -> MigrationReport:
    await migrated.say(verbs.CUTOVER)
    return await migrated.report()


@pytest.mark.parametrize("mode", ["incremental", "streaming"])
def test_rounds_go_on_while_the_copy_is_rehearsed(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    before = rehearsed_vm(orchestrator)
    stream = {"stream": {"precopy": True}} if mode == "streaming" else {}

    async def story() -> None:
        plan = _plan(orchestrator, mode=mode, **stream)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        held = orchestrator.hold("health.check")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        await orchestrator.reached(held)
        assert len(_frozen(orchestrator)) == 1
        orchestrator.source.write_disk("app01", "vda", 2 * MIB, os.urandom(MIB))
        now = await migrated.status()
        await migrated.until(lambda later: later.rounds_done >= now.rounds_done + 3)
        held.open()
        report = await drill.report()
        assert report.outcome == "completed", report.reason
        assert report.leftovers == ()
        assert report.ledger.open_entries() == ()
        record = the_record(orchestrator, before)
        assert record.passed
        assert record.from_copy
        assert record.compared
        await _thawed(orchestrator, migrated)
        assert [vm.name for vm in MemoryCloud(orchestrator.target_name).compute.inventory()] == []
        moved = await _cut_over(migrated)
        orchestrator.assert_moved(moved, before)

    run(story())


def test_it_rehearses_the_state_of_a_finished_round(orchestrator: Orchestrator, run: Run) -> None:
    """Waiting between rounds it is lent at once; what the source has written since is not in it."""
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator, rounds=WAITING)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2 and now.phase is Phase.ROUNDS)
        orchestrator.source.write_disk("app01", "vda", 3 * MIB, b"later")
        held = orchestrator.hold("stream.stop")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        await orchestrator.reached(held)
        path = Path(orchestrator.streams.server().config.target_path)
        content = await asyncio.to_thread(path.read_bytes)
        assert content == before.content["vda"]
        assert orchestrator.before("app01").content["vda"] != before.content["vda"]
        held.open()
        report = await drill.report()
        assert report.outcome == "completed", report.reason
        await migrated.say(verbs.ABORT)
        orchestrator.assert_given_back(await migrated.report(), orchestrator.before("app01"))

    run(story())


@pytest.mark.parametrize("verb", [verbs.CUTOVER, verbs.ABORT])
def test_the_migration_takes_its_copy_back(orchestrator: Orchestrator, run: Run, verb: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        held = orchestrator.hold("health.check")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        await orchestrator.reached(held)
        await migrated.say(verb)
        # After the round that runs; a drill that was let go on now might have ended by then.
        await _recalled(drill)
        held.open()
        report = await migrated.report()
        failed = await drill.report()
        assert failed.outcome == "rolled_back"
        assert "taken back" in failed.reason
        assert failed.leftovers == ()
        record = the_record(orchestrator, before)
        assert not record.passed
        assert "taken back" in record.why
        if verb == verbs.CUTOVER:
            orchestrator.assert_moved(report, before)
        else:
            orchestrator.assert_given_back(report, before)

    run(story())


def test_without_a_migration_in_its_rounds_it_is_refused(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def refused(plan: Any) -> str:
        report = await (await orchestrator.rehearse(plan, from_copy=True)).report()
        assert report.outcome == "refused"
        assert report.ledger.open_entries() == ()
        return report.reason

    async def story() -> None:
        plan = _plan(orchestrator)
        assert "no migration vm/" in await refused(plan)
        held = orchestrator.hold("copy.disk")
        migrated = await orchestrator.start(plan)
        await orchestrator.reached(held)
        assert "not in its rounds" in await refused(plan)
        held.open()
        await migrated.until(lambda now: now.rounds_done >= 2)
        orchestrator.fail("volume.freeze_writer", lambda: Unsupported("cannot freeze"))
        assert "cannot freeze" in await refused(plan)
        drill = await orchestrator.rehearse(plan, from_copy=True)
        assert (await drill.report()).outcome == "completed"
        orchestrator.assert_moved(await _cut_over(migrated), before)

    run(story())


def test_a_mode_without_rounds_has_no_copy(orchestrator: Orchestrator, run: Run) -> None:
    rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator, mode="cold")
        held = orchestrator.hold("copy.disk")
        migrated = await orchestrator.start(plan)
        await orchestrator.reached(held)
        report = await (await orchestrator.rehearse(plan, from_copy=True)).report()
        assert report.outcome == "refused"
        assert "no copy to lend" in report.reason
        held.open()
        assert (await migrated.report()).outcome == "completed"

    run(story())


@pytest.mark.parametrize("way", ["fails", "cancelled"])
def test_a_drill_that_ends_badly_gives_the_copy_back(orchestrator: Orchestrator, run: Run, way: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        if way == "fails":
            orchestrator.fail("compute.ensure_vm", lambda: Conflict("no"))
        held = orchestrator.hold("compute.ensure_vm" if way == "fails" else "health.check")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        if way == "cancelled":
            await orchestrator.reached(held)
            await drill.cancel()
        held.open()
        assert (await drill.report()).outcome == "rolled_back"
        await _thawed(orchestrator, migrated)
        orchestrator.assert_moved(await _cut_over(migrated), before)

    run(story())


def test_a_loan_is_carried_over_continue_as_new(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        rounds = {"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.1}
        plan = _plan(orchestrator, rounds=rounds)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        held = orchestrator.hold("health.check")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        await orchestrator.reached(held)
        assert len(_frozen(orchestrator)) == 1
        first = (await migrated.handle.describe()).run_id
        while (await migrated.handle.describe()).run_id == first:
            await migrated.until(lambda now: now.rounds_done > 3)
        assert len(_frozen(orchestrator)) == 1
        held.open()
        assert (await drill.report()).outcome == "completed"
        await _thawed(orchestrator, migrated)
        orchestrator.assert_moved(await _cut_over(migrated), before)

    run(story())


def test_the_next_drill_takes_the_place_of_one_that_died(orchestrator: Orchestrator, run: Run) -> None:
    """A terminated drill gives nothing back; a return that nobody waits for harms nobody."""
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        await migrated.handle.signal(COPY_RETURNED_SIGNAL, CopyReturned(drill="0123456789"))
        held = orchestrator.hold("volume.ensure", fits=lambda wanted: wanted.migration != before.spec.ref)
        dead = await orchestrator.rehearse(plan, from_copy=True)
        await orchestrator.reached(held)
        (left,) = _frozen(orchestrator)
        await dead.handle.terminate()
        held.open()
        drill = await orchestrator.rehearse(plan, from_copy=True)
        report = await drill.report()
        assert report.outcome == "completed", report.reason
        await _thawed(orchestrator, migrated)
        assert left.endswith(f"{(await drill.status()).migration}") is False
        orchestrator.assert_moved(await _cut_over(migrated), before)

    run(story())


def test_a_copy_given_back_before_it_was_asked_for_is_not_frozen(orchestrator: Orchestrator, run: Run) -> None:
    """The two signals of a drill that was called off at once may arrive the other way round."""
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        drill = "0123456789"
        await migrated.handle.signal(COPY_RETURNED_SIGNAL, CopyReturned(drill=drill))
        wanted = CopyWanted(drill=drill, workflow_id="drill/nobody/app01", target=orchestrator.target_name)
        await migrated.handle.signal(COPY_WANTED_SIGNAL, wanted)
        done = (await migrated.status()).rounds_done
        await migrated.until(lambda now: now.rounds_done >= done + 3)
        assert "volume.freeze_writer" not in orchestrator.started()
        orchestrator.assert_moved(await _cut_over(migrated), before)

    run(story())


@pytest.mark.parametrize("act", ["volume.freeze_writer", "volume.thaw_writer"])
def test_a_worker_that_dies_with_its_answer(orchestrator: Orchestrator, run: Run, act: str) -> None:
    """The work was done and nobody heard of it: the next attempt finds it done."""
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator)
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        orchestrator.fail(act, lambda: Unavailable("the worker is gone"), when="after")
        drill = await orchestrator.rehearse(plan, from_copy=True)
        report = await drill.report()
        assert report.outcome == "completed", report.reason
        await _thawed(orchestrator, migrated)
        orchestrator.assert_moved(await _cut_over(migrated), before)
        assert orchestrator.started().count(act) >= 2

    run(story())
