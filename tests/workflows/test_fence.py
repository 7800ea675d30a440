"""A source that can be fenced is, from its stop to the end of the migration, in every mode."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from tests.workflows.sharing import POOL, share
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport, MigrationStatus, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]
MODES = ["incremental", "cold", "streaming", "dual-attach"]


def _scene(orchestrator: Orchestrator, mode: str, **traits: Any) -> tuple[Before, VmPlan]:
    for cloud in (orchestrator.source, orchestrator.target):
        cloud.set_capabilities(fences=True)
    more: dict[str, Any] = {"mode": mode, "confirm": {"then": "wait"}}
    if mode == "dual-attach":
        before = share(orchestrator, **traits)
        more |= {"storage": {POOL: POOL}, "forget_source": False}
    else:
        orchestrator.source.add_vm("app01", disks=((4 * MIB, "raw"),), **traits)
        orchestrator.source.write_disk("app01", "vda", 65536, os.urandom(MIB))
        before = orchestrator.before("app01")
    return before, orchestrator.plan("app01", **more)


def _fenced(orchestrator: Orchestrator, before: Before) -> str | None:
    return MemoryCloud(orchestrator.source_name).compute.fenced(before.spec.ref)


async def _at_the_gate(orchestrator: Orchestrator, before: Before, now: MigrationStatus) -> None:
    """The owner cannot start it, whatever the mode does with its disks."""
    assert _fenced(orchestrator, before) == now.migration
    with pytest.raises(Conflict, match="fenced"):
        MemoryCloud(orchestrator.source_name).compute.start(before.spec.ref)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", [verbs.CONFIRM, verbs.ROLLBACK])
def test_until_the_end(orchestrator: Orchestrator, run: Run, mode: str, end: str) -> None:
    before, plan = _scene(orchestrator, mode)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        await _at_the_gate(orchestrator, before, await migrated.phase(Phase.CONFIRM))
        await migrated.say(end)
        return await migrated.report()

    report = run(story())
    assert report.outcome == ("completed" if end == verbs.CONFIRM else "rolled_back"), report.reason
    assert report.leftovers == ()
    assert _fenced(orchestrator, before) is None
    if mode == "dual-attach":  # the target is asked to stop: nobody starts it before it is gone
        assert len(orchestrator.target.calls_of("compute.fence")) == (0 if end == verbs.CONFIRM else 1)
    power = MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref)
    assert power is (Power.OFF if end == verbs.CONFIRM else Power.RUNNING)


@pytest.mark.parametrize("mode", ["cold", "dual-attach"])
def test_a_vm_that_was_off_is_fenced_and_stays_off(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    before, plan = _scene(orchestrator, mode, running=False)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        await _at_the_gate(orchestrator, before, await migrated.phase(Phase.CONFIRM))
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
    assert _fenced(orchestrator, before) is None


@pytest.mark.parametrize("mode", ["incremental", "dual-attach"])
def test_a_source_started_at_the_last_moment_keeps_running(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    """Its owner was faster than the fence: the cutover is taken back, whatever was copied meanwhile."""
    before, plan = _scene(orchestrator, mode)
    orchestrator.source.set_capabilities(points_outlive_start=True)  # no open point of it is in the owner's way
    held = orchestrator.hold("compute.fence", fits=lambda wanted: not wanted.stopping, when="before")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        await orchestrator.reached(held)
        compute = MemoryCloud(orchestrator.source_name).compute
        fenced = compute.fenced(before.spec.ref)
        assert fenced, "already while it stopped"
        compute.unfence(before.spec.ref, migration=fenced)  # by an administrator
        compute.start(before.spec.ref)
        held.open()
        now = await migrated.until(lambda now: now.trouble is not None and now.trouble.code == "Conflict")
        assert now.trouble is not None
        assert "last moment" in now.trouble.message
        assert _fenced(orchestrator, before) is None
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    report = run(story())
    assert (report.outcome, report.leftovers) == ("rolled_back", ())
    assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("when", ["before", "after"])
def test_fence_and_its_end_may_lose_their_answers(orchestrator: Orchestrator, run: Run, when: Any) -> None:
    before, plan = _scene(orchestrator, "cold")
    for activity in ("compute.fence", "compute.unfence"):
        orchestrator.fail(activity, lambda: Unavailable("the line is cut"), when=when)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        await _at_the_gate(orchestrator, before, await migrated.phase(Phase.CONFIRM))
        await migrated.say(verbs.CONFIRM)
        return await migrated.report()

    report = run(story())
    assert (report.outcome, report.leftovers) == ("completed", ())
    assert _fenced(orchestrator, before) is None


def test_a_fence_that_stays_is_a_leftover(orchestrator: Orchestrator, run: Run) -> None:
    before, plan = _scene(orchestrator, "cold")
    held = orchestrator.hold("ledger.read_back", when="before")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        now = await migrated.phase(Phase.CONFIRM)
        await migrated.say(verbs.CONFIRM)
        await orchestrator.reached(held)
        MemoryCloud(orchestrator.source_name).compute.fence(before.spec.ref, migration=now.migration)
        held.open()
        return await migrated.report()

    assert run(story()).leftovers == (f"fence app01 on {orchestrator.source_name}",)
