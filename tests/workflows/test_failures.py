"""A failure in each step: retried, held for the operator, or taken back; what was copied is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.contracts.timeouts import TABLE
from whimbrel.errors import AuthFailed, Conflict, InvalidPlan, QuotaExceeded, Throttled, Unavailable, WhimbrelError
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]
Fits = Callable[[Any], bool]


def _anything(_: Any) -> bool:
    return True


def _stage(stage: str) -> Fits:
    return lambda wanted: wanted.stage == stage


def _kind(kind: str) -> Fits:
    return lambda job: job.kind == kind


def _at(role: str) -> Fits:
    return lambda wanted: wanted.cloud.startswith(role)


def _vm(orchestrator: Orchestrator, name: str = "app01", **traits: Any) -> Before:
    orchestrator.source.add_vm(name, disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")), **traits)
    orchestrator.source.write_disk(name, "vda", 65536, os.urandom(2 * MIB))
    orchestrator.source.write_disk(name, "vdb", 0, os.urandom(MIB))
    return orchestrator.before(name)


HELD: dict[str, tuple[str, Fits]] = {
    "precheck": ("precheck.run", _stage("start")),
    "inspect": ("compute.inspect", _anything),
    "volumes": ("volume.ensure", _anything),
    "point": ("point.open", _at("src")),
    "writer": ("volume.open_writer", _anything),
    "baseline": ("copy.disk", _kind("baseline")),
    "close": ("point.close", _at("src")),
    "delta": ("copy.disk", _kind("delta")),
    "compare": ("compare.disk", _anything),
    "thaw": ("point.close", _at("dst")),
    "release": ("compute.release", _anything),
    "read-back": ("ledger.read_back", _anything),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", HELD)
def test_held_then_resumed(orchestrator: Orchestrator, run: Run, step: str, when: str) -> None:
    """What retries cannot mend waits for the operator; ``resume`` tries it again, and the migration completes."""
    activity, fits = HELD[step]
    before = _vm(orchestrator)
    orchestrator.fail(activity, lambda: QuotaExceeded("no room", bytes=7), fits=fits, when=when)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01"))
        now = await migrated.held("QuotaExceeded")
        assert now.trouble is not None
        assert "no room" in now.trouble.message
        assert "free space" in now.trouble.action
        assert now.trouble.choices[0] == verbs.RESUME
        assert set(now.trouble.choices) <= set(now.allowed)
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert "failed" in {each.outcome for each in report.status.steps}


RETREATS: dict[str, tuple[str, Fits]] = {
    "last-precheck": ("precheck.run", _stage("cutover")),
    "fence": ("compute.set_autostart", _anything),
    "power": ("compute.power", _at("src")),
    "ask": ("compute.request_stop", _at("src")),
    "final-point": ("point.open", _at("src")),
    "final-copy": ("copy.disk", _kind("final")),
    "release-volumes": ("volume.close_writer", _at("dst")),
    "define": ("compute.ensure_vm", _anything),
    "start": ("compute.start", _at("dst")),
    "freeze": ("point.open", _at("dst")),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", RETREATS)
def test_a_cutover_that_fails_is_taken_back(orchestrator: Orchestrator, run: Run, step: str, when: str) -> None:
    """The source runs again, volumes stay, rounds go on; only the operator begins the second cutover, which completes.

    Strikes of the cutover are armed when the rounds have begun.
    """
    activity, fits = RETREATS[step]
    before = _vm(orchestrator)
    compute = MemoryCloud(orchestrator.source_name).compute
    compute.set_autostart(before.spec.ref, enabled=True)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(
            orchestrator.plan("app01", rounds={"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0})
        )
        await migrated.until(lambda now: now.rounds_done == 2)
        orchestrator.fail(activity, lambda: Conflict("somebody is in the way"), fits=fits, when=when)
        await migrated.say(verbs.CUTOVER)
        now = await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
        assert now.trouble is not None
        assert now.trouble.code == "Conflict"
        assert set(now.trouble.choices) <= set(now.allowed)
        assert verbs.CUTOVER in now.trouble.choices
        assert compute.power(before.spec.ref) is Power.RUNNING
        assert compute.inspect(before.spec.ref).autostart
        assert now.outage is None
        assert MemoryCloud(orchestrator.target_name).compute.inventory() == []
        assert len(MemoryCloud(orchestrator.target_name).volumes.owned(now.migration)) == 2
        orchestrator.source.scribble("app01", "vda", seed=11)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert report.status.trouble is None
    baseline, later = report.status.rounds[0], report.status.rounds[1:]
    assert sum(each.sent_bytes for each in later) < baseline.sent_bytes + MIB, "nothing is copied all over again"


def test_a_cold_cutover_that_fails_asks_before_the_next(orchestrator: Orchestrator, run: Run) -> None:
    """Cold: the source runs again, and goes down a second time only when the operator says so."""
    before = _vm(orchestrator)
    orchestrator.fail("compute.ensure_vm", lambda: Conflict("the MAC is taken"))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", mode="cold"))
        await migrated.held("Conflict")
        assert MemoryCloud(orchestrator.source_name).compute.power(before.spec.ref) is Power.RUNNING
        orchestrator.source.scribble("app01", "vda", seed=3)
        assert "stops the source by itself" in await migrated.refused(verbs.CUTOVER)
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_a_target_that_cannot_be_let_run_leads_back(orchestrator: Orchestrator, run: Run) -> None:
    """Once the target may have run there is no quiet retreat: all is rolled back, and the report says why."""
    before = _vm(orchestrator)
    orchestrator.fail("compute.resume", lambda: Conflict("its disk is locked"), fits=_at("dst"))
    report = run(orchestrator.migrate(orchestrator.plan("app01")))
    orchestrator.assert_given_back(report, before)
    assert "its disk is locked" in report.reason


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("mode", ["incremental", pytest.param("cold", marks=pytest.mark.slow)])
def test_every_activity_fails_once_and_loses_an_answer_once(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    """All of them may be done twice: the migration completes as if nothing had been."""
    before = _vm(orchestrator)
    waits = {"compute.wait_off", "health.check"}
    for activity in TABLE.keys() - waits:
        for when in ("before", "after"):
            orchestrator.fail(activity, lambda: Unavailable("the line is cut"), when=when)
    report = run(orchestrator.migrate(orchestrator.plan("app01", mode=mode)))
    orchestrator.assert_moved(report, before)


@pytest.mark.parametrize("error", [AuthFailed("refused"), InvalidPlan("no such pool")])
def test_what_a_person_must_mend_is_not_retried(orchestrator: Orchestrator, run: Run, error: WhimbrelError) -> None:
    """One call, then the operator is asked; the failure tells what to do."""
    before = _vm(orchestrator)
    orchestrator.fail("volume.ensure", lambda: error, times=None)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01"))
        now = await migrated.held(error.code)
        assert now.trouble is not None
        assert now.trouble.action == error.action
        assert orchestrator.started().count("volume.ensure") == 1
        await migrated.say(verbs.ABORT)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)


def test_an_unmapped_network_is_told_before_anything_is_made(orchestrator: Orchestrator, run: Run) -> None:
    """The plan is wrong: nothing was touched, nothing needs undoing."""
    before = _vm(orchestrator)
    report = run(orchestrator.migrate(orchestrator.plan("app01", networks={})))
    assert report.outcome == "refused"
    assert orchestrator.before("app01") == before
    assert report.ledger.entries == ()
    assert "network" in report.reason
    assert orchestrator.leftovers(report.status.migration) == []


def test_a_full_pool_holds_and_keeps_what_was_copied(orchestrator: Orchestrator, run: Run) -> None:
    """Space is freed, ``resume`` goes on: only what was missing is sent."""
    orchestrator.source.add_vm("app01", disks=((16 * MIB, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(12 * MIB))
    before = orchestrator.before("app01")
    first_target: list[str] = []

    async def story() -> MigrationReport:
        held = orchestrator.hold("copy.disk")
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await orchestrator.reached(held)
        status = await migrated.status()
        volume = MemoryCloud(orchestrator.target_name).volumes.owned(status.migration)[0]
        first_target.append(volume)
        orchestrator.target.fail_writes(volume, after_bytes=6 * MIB)
        held.open()
        now = await migrated.held("QuotaExceeded")
        assert now.phase is Phase.ATTENTION
        orchestrator.target.heal_writes(volume)
        await migrated.say(verbs.RESUME)
        await migrated.phase(Phase.ROUNDS)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    # The figures are those of all attempts together.
    assert report.status.rounds[0].sent_bytes <= 13 * MIB, "what was copied was not sent again"


def test_a_cloud_that_is_down_for_an_hour_is_survived(orchestrator: Orchestrator, run: Run) -> None:
    """Refused connections, then three long pauses that the cloud asks for: waited for, and it goes on by itself."""
    before = _vm(orchestrator)
    orchestrator.fail("point.open", lambda: Unavailable("connection refused"), times=3, fits=_at("src"))
    slow = orchestrator.fail("point.open", lambda: Throttled("busy", retry_after_s=1200), times=3, fits=_at("src"))
    report = run(orchestrator.migrate(orchestrator.plan("app01"), skip=True))
    orchestrator.assert_moved(report, before)
    assert slow.struck == 3
    assert (report.status.now - report.status.started_at).total_seconds() > 3600


@pytest.mark.usefixtures("quick_retries")
def test_copies_that_reach_nobody_open_both_ends_again(
    orchestrator: Orchestrator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mover that cannot reach the data: its attempts end, both ends are opened again, as long as it takes."""
    monkeypatch.setattr(TABLE["copy.disk"].retry, "maximum_attempts", 2)
    before = _vm(orchestrator)
    orchestrator.fail("copy.disk", lambda: Unavailable("no route"), times=4, fits=_kind("baseline"))
    report = run(orchestrator.migrate(orchestrator.plan("app01", parallel_disks=1)))
    orchestrator.assert_moved(report, before)
    first = [call.args["key"] for call in orchestrator.source.calls if call.method == "open"][2:]
    assert first.count(first[0]) == 3, first


@pytest.mark.parametrize("then", ["force", "hold"])
def test_a_guest_that_will_not_stop(orchestrator: Orchestrator, run: Run, then: str) -> None:
    """``force`` takes the power away; ``hold`` goes back to the rounds and tells the operator."""
    before = _vm(orchestrator)
    orchestrator.source.guest_stops("app01", after_s=None)

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", stop={"graceful_timeout_s": 1.0, "then": then})
        migrated = await orchestrator.start(plan)
        if then == "hold":
            now = await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
            assert now.trouble is not None
            assert "did not shut down" in now.trouble.message
            assert "compute.force_off" not in orchestrator.source.calls_of("compute.force_off")
            orchestrator.source.guest_stops("app01")
            await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert bool(orchestrator.source.calls_of("compute.force_off")) is (then == "force")


def test_without_patience_the_guest_is_not_even_asked(orchestrator: Orchestrator, run: Run) -> None:
    """``graceful_timeout_s: 0`` takes the power away at once."""
    before = _vm(orchestrator)
    orchestrator.assert_moved(
        run(orchestrator.migrate(orchestrator.plan("app01", stop={"graceful_timeout_s": 0}))), before
    )
    assert orchestrator.source.calls_of("compute.request_stop") == []
