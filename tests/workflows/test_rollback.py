"""A rollback from everywhere: by the operator's verb and by a cancellation in Temporal, before and after each act."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]
Fits = Callable[[Any], bool]


def _stage(stage: str) -> Fits:
    return lambda wanted: wanted.stage == stage


def _kind(kind: str) -> Fits:
    return lambda job: job.kind == kind


def _at(role: str) -> Fits:
    return lambda wanted: wanted.cloud.startswith(role)


DOORS: dict[str, tuple[str, Fits]] = {
    "precheck": ("precheck.run", _stage("start")),
    "inspect": ("compute.inspect", lambda _: True),
    "volumes": ("volume.ensure", lambda _: True),
    "first-point": ("point.open", _at("src")),
    "writer": ("volume.open_writer", lambda _: True),
    "baseline": ("copy.disk", _kind("baseline")),
    "close-point": ("point.close", _at("src")),
    "forget": ("point.forget", _at("src")),
    "delta": ("copy.disk", _kind("delta")),
    "last-precheck": ("precheck.run", _stage("cutover")),
    "fence": ("compute.set_autostart", lambda _: True),
    "stop": ("compute.request_stop", _at("src")),
    "off": ("compute.wait_off", _at("src")),
    "final": ("copy.disk", _kind("final")),
    "release-volumes": ("volume.close_writer", _at("dst")),
    "define": ("compute.ensure_vm", lambda _: True),
    "start": ("compute.start", _at("dst")),
    "freeze": ("point.open", _at("dst")),
    "run": ("compute.resume", _at("dst")),
    "health": ("health.check", lambda _: True),
    "compare": ("compare.disk", lambda _: True),
    "thaw": ("point.close", _at("dst")),
}


def _vm(orchestrator: Orchestrator, name: str = "app01", **traits: Any) -> Before:
    orchestrator.source.add_vm(name, disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")), **traits)
    orchestrator.source.write_disk(name, "vda", 65536, os.urandom(MIB))
    orchestrator.source.write_disk(name, "vdb", 0, os.urandom(MIB))
    return orchestrator.before(name)


@pytest.mark.parametrize("how", ["verb", "cancel"])
@pytest.mark.parametrize("door", DOORS)
def test_from_every_door(orchestrator: Orchestrator, run: Run, door: str, how: str) -> None:
    """The verb comes before the act, the cancellation after it: both times everything is undone."""
    activity, fits = DOORS[door]
    before = _vm(orchestrator)
    if door == "fence":
        MemoryCloud(orchestrator.source_name).compute.set_autostart(before.spec.ref, enabled=True)
        before = orchestrator.before("app01")
    held = orchestrator.hold(activity, fits=fits, when="before" if how == "verb" else "after")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", confirm={"then": "wait"}))
        await orchestrator.reached(held)
        if how == "verb":
            assert await migrated.say(verbs.ROLLBACK, by="ops", reason="changed our mind")
        else:
            await migrated.cancel()
            await migrated.until(lambda now: Phase.ROLLING_BACK is now.phase or verbs.CONFIRM not in now.allowed)
        held.open()
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before)
    assert report.reason == ("changed our mind (ops)" if how == "verb" else "cancelled in Temporal")


@pytest.mark.parametrize(
    ("mode", "power"), [("incremental", Power.RUNNING), ("cold", Power.RUNNING), ("cold", Power.OFF)]
)
def test_from_the_confirm_gate(orchestrator: Orchestrator, run: Run, mode: str, power: Power) -> None:
    """The target has run already; the source is given back as at the cutover, and undone newest first."""
    before = _vm(orchestrator, running=power is Power.RUNNING)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", mode=mode, confirm={"then": "wait"}))
        now = await migrated.phase(Phase.CONFIRM)
        assert set(now.allowed) >= {verbs.CONFIRM, verbs.ROLLBACK}
        assert verbs.ABORT not in now.allowed
        assert now.confirm_deadline is None
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before)
    undone = [step.name for step in report.status.steps if step.outcome == "undone"]
    assert undone == [
        "undo: remove-target-vm",
        "undo: restore-source",
        "undo: forget-points",
        "undo: close-writer",
        "undo: remove-volumes",
        "undo: discard-manifests",
    ]
    order = orchestrator.started()
    acts = [order.index(name) for name in ("compute.ensure_absent", "compute.restore_source", "volume.remove")]
    assert acts == sorted(acts)
    assert order[-1] == "ledger.read_back"


@pytest.mark.usefixtures("quick_retries")
def test_every_undo_may_lose_its_answer(orchestrator: Orchestrator, run: Run) -> None:
    """Each undo fails once before its work and once after it, and is simply done again."""
    before = _vm(orchestrator)
    for activity in ("compute.ensure_absent", "compute.restore_source", "volume.remove", "manifest.discard"):
        for when in ("before", "after"):
            orchestrator.fail(activity, lambda: Unavailable("the line is cut"), when=when)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", confirm={"then": "wait"}))
        await migrated.phase(Phase.CONFIRM)
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)


def test_an_undo_that_cannot_is_held_and_tried_again(orchestrator: Orchestrator, run: Run) -> None:
    """Somebody uses a target volume: the operator is asked, and the rest is undone after ``resume``."""
    before = _vm(orchestrator)
    orchestrator.fail("volume.remove", lambda: Conflict("a volume is in use by a backup"))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await migrated.phase(Phase.ROUNDS)
        await migrated.say(verbs.ABORT)
        now = await migrated.held("Conflict")
        assert now.trouble is not None
        assert now.trouble.choices == (verbs.RESUME,)
        assert now.trouble.step == "undo: remove-volumes"
        assert "rolled back already" in await migrated.refused(verbs.ROLLBACK)
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before)
    assert report.reason == "aborted by the operator"


def test_cancelled_while_rolling_back_it_goes_on(orchestrator: Orchestrator, run: Run) -> None:
    """A cancellation in Temporal does not stop the undoing half way."""
    before = _vm(orchestrator)
    held = orchestrator.hold("volume.remove")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await migrated.phase(Phase.ROUNDS)
        await migrated.say(verbs.ROLLBACK)
        await orchestrator.reached(held)
        await migrated.cancel()
        await migrated.status()
        held.open()
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)


def test_cancelled_while_committing_it_completes(orchestrator: Orchestrator, run: Run) -> None:
    """After the confirmation there is no way back: not by cancelling, not by a verb, not even when a step is held."""
    before = _vm(orchestrator)
    held = orchestrator.hold("compute.release")
    orchestrator.fail("manifest.discard", lambda: Conflict("the disk of the mover is read-only"))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01"))
        await orchestrator.reached(held)
        assert "too late" in await migrated.refused(verbs.ROLLBACK)
        await migrated.cancel()
        held.open()
        now = await migrated.held("Conflict")
        assert now.trouble is not None
        assert now.trouble.choices == (verbs.RESUME,)
        assert "too late" in await migrated.refused(verbs.ROLLBACK)
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_a_source_that_was_paused_is_paused_again(orchestrator: Orchestrator, run: Run) -> None:
    """The power state before the migration is the one after the rollback."""
    _vm(orchestrator)
    orchestrator.source.set_power("app01", Power.PAUSED)
    before = orchestrator.before("app01")

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", mode="cold", confirm={"then": "wait"}, ignore=("source.power",))
        migrated = await orchestrator.start(plan)
        await migrated.phase(Phase.CONFIRM)
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
