"""A target whose VMs can be announced: what is to be had without the last bytes is had before the source is stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import BaseLost, Conflict, WhimbrelError
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[[Coroutine[Any, Any, MigrationReport]], MigrationReport]
MANUAL = {"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0}
LAST = b"written after the last round" * 3000


@pytest.fixture
def before(orchestrator: Orchestrator) -> Before:
    """A VM of two disks, and a target that makes a server only by starting it, as Nova does."""
    orchestrator.target.set_capabilities(start_paused=False, points_outlive_start=True, announces=True)
    orchestrator.source.set_capabilities(rests=True)
    orchestrator.source.add_vm("app01", disks=((4 * MIB, "qcow2"), (2 * MIB, "qcow2")))
    orchestrator.source.write_disk("app01", "vda", 65536, os.urandom(2 * MIB))
    return orchestrator.before("app01")


def _steps(report: MigrationReport) -> list[str]:
    return [step.name for step in report.status.steps]


async def _to_the_last_delta(orchestrator: Orchestrator, **changes: Any) -> Any:
    """Rounds are over, and the guest has written what only the last delta can bring."""
    migrated = await orchestrator.start(orchestrator.plan("app01", rounds=MANUAL, **changes))
    await migrated.until(lambda now: now.rounds_done == 2)
    orchestrator.source.guest_write("app01", "vda", MIB + 100, LAST)
    return migrated


def test_the_last_delta_is_all_that_the_outage_waits_for(orchestrator: Orchestrator, run: Run, before: Before) -> None:
    """Every byte is compared: what was there before the delta in the frozen state, the delta by its digests."""

    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()  # type: ignore[no-any-return]

    report = run(story())
    orchestrator.assert_moved(report, before)
    steps = _steps(report)
    assert steps.index("announce the VM") < steps.index("stop the source")
    points = orchestrator.target.calls_of("points.open")
    assert len(points) == 1
    brought = {record.disk: record.read_back_bytes for record in report.status.verify}
    assert brought["vda"] >= len(LAST)
    assert brought["vdb"] == 0
    compared = sum(
        each.compared_bytes + each.skipped_zero_bytes + each.read_back_bytes for each in report.status.verify
    )
    assert compared == 6 * MIB


def test_a_delta_that_tracking_did_not_tell_is_no_part_of_the_proof(
    orchestrator: Orchestrator, run: Run, before: Before
) -> None:
    """A write that no bitmap saw is missing at the target; the frozen state shows it."""

    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator)
        disk = orchestrator.source.disk("app01", "vda")
        super(type(disk), disk).write(3 * MIB, os.urandom(65536))
        await migrated.say(verbs.CUTOVER)
        held = await migrated.held("DataMismatch")
        assert held.trouble is not None
        assert str(3 * MIB) in held.trouble.message
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()  # type: ignore[no-any-return]

    assert run(story()).outcome == "rolled_back"
    orchestrator.source.set_power("app01", Power.OFF)


def test_without_tracking_the_state_is_frozen_when_it_is_whole(
    orchestrator: Orchestrator, run: Run, before: Before
) -> None:
    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator)
        orchestrator.source.fail("points", "open", lambda: BaseLost("inconsistent bitmap"), times=2)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()  # type: ignore[no-any-return]

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert [record.read_back_bytes for record in report.status.verify] == [0, 0]
    assert len(orchestrator.target.calls_of("points.open")) == 2


def test_what_digests_told_is_frozen_when_it_is_whole(orchestrator: Orchestrator, run: Run, before: Before) -> None:
    """The manifest is damaged: the copy mends also what tracking missed earlier, which the frozen state has wrong."""

    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator)
        disk = orchestrator.source.disk("app01", "vda")
        super(type(disk), disk).write(3 * MIB, os.urandom(65536))
        (manifest,) = orchestrator.state_dir.glob("manifests/*/vda.manifest")
        with manifest.open("r+b") as file:
            file.truncate(10000)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()  # type: ignore[no-any-return]

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert report.status.rounds[-1].by_hash
    assert len(orchestrator.target.calls_of("points.open")) == 2


@pytest.mark.parametrize(
    ("activity", "error"),
    [
        ("compute.announce", Conflict("the MAC is taken")),
        ("point.open", Conflict("no snapshot")),
        ("copy.disk", Conflict("the image is locked")),
        ("compute.start", Conflict("no")),
    ],
)
def test_what_is_refused_is_taken_back_and_tried_again(
    orchestrator: Orchestrator, run: Run, before: Before, activity: str, error: WhimbrelError
) -> None:
    """Nothing of the target's VM is left in between, and the source runs: with its outage only where it was stopped."""
    early = activity in {"compute.announce", "point.open"}
    target = orchestrator.target_name

    def fits(wanted: Any) -> bool:
        cloud = getattr(wanted, "cloud", None)
        return getattr(wanted, "kind", None) == "final" if activity == "copy.disk" else cloud == target

    orchestrator.fail(activity, lambda: error, fits=fits)

    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator)
        await migrated.say(verbs.CUTOVER)
        if activity == "compute.start":  # it may run, for only want of room says that it does not
            return await migrated.report()  # type: ignore[no-any-return]
        now = await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
        assert now.trouble is not None
        assert error.message in now.trouble.message
        assert MemoryCloud(target).compute.inventory() == []
        assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING
        asked = orchestrator.source.calls_of("compute.request_stop")
        assert bool(asked) is not early
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()  # type: ignore[no-any-return]

    report = run(story())
    if activity == "compute.start":
        assert report.outcome == "rolled_back"
        orchestrator.assert_nothing_left(report)
        return
    orchestrator.assert_moved(report, before)


def test_the_targets_writes_come_back_with_the_last_delta(orchestrator: Orchestrator, run: Run, before: Before) -> None:
    """They are told apart from the frozen state, which is older than the delta: both are in the source at the end."""

    async def story() -> MigrationReport:
        migrated = await _to_the_last_delta(orchestrator, keep_writes=True, confirm={"then": "wait"})
        await migrated.say(verbs.CUTOVER)
        await migrated.phase(Phase.CONFIRM)
        orchestrator.target.guest_write("app01", "vda", 3 * MIB, b"at the target")
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()  # type: ignore[no-any-return]

    report = run(story())
    assert report.outcome == "rolled_back"
    disk = orchestrator.source.read_disk("app01", "vda")
    assert disk[MIB + 100 : MIB + 100 + len(LAST)] == LAST
    assert disk[3 * MIB :].startswith(b"at the target")
    assert report.writes_kept_bytes
    orchestrator.assert_nothing_left(report)
