"""Handing disks over between in-memory clouds on one storage: the way there, and every way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Orchestrator
from tests.workflows.sharing import POOL, assert_handed_over, assert_never_double, content, share, shared_plan
from whimbrel.contracts import verbs
from whimbrel.contracts.migration import PrecheckInput, PrecheckReport
from whimbrel.contracts.names import CONTROL_QUEUE, PRECHECK
from whimbrel.errors import Conflict, NotFound, Unavailable
from whimbrel.model.naming import marker_name
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]
WAIT = {"then": "wait"}


def test_disks_change_hands_without_a_byte_copied(orchestrator: Orchestrator, run: Run) -> None:
    before = share(orchestrator)
    report = run(orchestrator.migrate(shared_plan(orchestrator)))
    assert_handed_over(orchestrator, report, before)
    assert content(orchestrator, before) == before.content
    with pytest.raises(NotFound):
        MemoryCloud(orchestrator.source_name).compute.inspect(before.spec.ref)
    assert not {"copy.disk", "compare.disk", "point.open", "volume.ensure"} & set(orchestrator.started())
    outage = report.status.outage
    assert outage is not None
    assert outage.healthy_at is not None


def test_the_shell_of_the_source_may_stay(orchestrator: Orchestrator, run: Run) -> None:
    """``forget_source: false``: it is there, has no disks, and cannot be started."""
    before = share(orchestrator)
    report = run(orchestrator.migrate(shared_plan(orchestrator, forget_source=False)))
    assert report.outcome == "completed"
    assert report.leftovers == ()
    compute = MemoryCloud(orchestrator.source_name).compute
    assert compute.inspect(before.spec.ref).disks == ()
    with pytest.raises(Conflict):
        compute.start(before.spec.ref)


def test_a_vm_that_was_off_stays_off(orchestrator: Orchestrator, run: Run) -> None:
    before = share(orchestrator, running=False)
    report = run(orchestrator.migrate(shared_plan(orchestrator)))
    assert_handed_over(orchestrator, report, before, power=Power.OFF)
    assert report.status.outage is None


def test_the_order_is_the_fence(orchestrator: Orchestrator, run: Run) -> None:
    """Off, released, open nowhere, adopted, defined, started: in this order."""
    share(orchestrator)
    run(orchestrator.migrate(shared_plan(orchestrator)))
    order = orchestrator.started()
    acts = ("compute.wait_off", "handover.release", "handover.adopt", "handover.define", "compute.start")
    found = [order.index(act) for act in acts]
    assert found == sorted(found)


DOORS = {
    "precheck": ("precheck.run", lambda wanted: wanted.stage == "start"),
    "inspect": ("compute.inspect", lambda _: True),
    "look": ("handover.look", lambda _: True),
    "last-precheck": ("precheck.run", lambda wanted: wanted.stage == "cutover"),
    "stop": ("compute.request_stop", lambda wanted: wanted.cloud.startswith("src")),
    "off": ("compute.wait_off", lambda wanted: wanted.cloud.startswith("src")),
    "release": ("handover.release", lambda _: True),
    "adopt": ("handover.adopt", lambda _: True),
    "define": ("handover.define", lambda _: True),
    "start": ("compute.start", lambda wanted: wanted.cloud.startswith("dst")),
    "run": ("compute.resume", lambda wanted: wanted.cloud.startswith("dst")),
    "health": ("health.check", lambda _: True),
    "verify": ("handover.verify", lambda _: True),
}


@pytest.mark.parametrize("how", ["verb", "cancel"])
@pytest.mark.parametrize("door", DOORS)
def test_rollback_from_every_door(orchestrator: Orchestrator, run: Run, door: str, how: str) -> None:
    """The verb comes before the act, the cancellation after it: both times the source is as it was."""
    activity, fits = DOORS[door]
    before = share(orchestrator)
    held = orchestrator.hold(activity, fits=fits, when="before" if how == "verb" else "after")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator, confirm=WAIT))
        await orchestrator.reached(held)
        if how == "verb":
            await migrated.say(verbs.ROLLBACK)
        else:
            await migrated.cancel()
            await migrated.until(lambda now: Phase.ROLLING_BACK is now.phase or verbs.CONFIRM not in now.allowed)
        held.open()
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
    assert_never_double(orchestrator)


@pytest.mark.parametrize("keep_writes", [False, True])
def test_rollback_after_the_target_has_written_keeps_its_writes(
    orchestrator: Orchestrator, run: Run, *, keep_writes: bool
) -> None:
    """The same volumes go back: nothing is copied, and ``keep_writes`` makes no difference."""
    before = share(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator, confirm=WAIT, keep_writes=keep_writes))
        await migrated.phase(Phase.CONFIRM)
        orchestrator.target.guest_write("app01", "vda", 3 * MIB, b"written at the target")
        answer = await migrated.say(verbs.ROLLBACK)
        assert answer == "rolling back"
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before, same_bytes=False)
    now = orchestrator.source.read_disk("app01", "vda")
    assert now[3 * MIB : 3 * MIB + 21] == b"written at the target"
    assert report.bytes_sent == 0
    assert report.source_restored is True
    assert_never_double(orchestrator)
    undone = [step.name for step in report.status.steps if step.outcome == "undone"]
    assert undone == [
        "undo: stop-target",
        "undo: remove-target-vm",
        "undo: abandon-disks",
        "undo: reclaim-source",
        "undo: restore-source",
    ]
    order = orchestrator.started()
    assert order.index("compute.request_stop", order.index("health.check")) < order.index("compute.ensure_absent")


@pytest.mark.parametrize(
    "step", ["handover.release", "handover.adopt", "handover.define", "compute.start", "compute.resume"]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handover_that_fails_is_taken_back(orchestrator: Orchestrator, run: Run, step: str, when: str) -> None:
    """The source runs again on its volumes; the operator says when it is tried once more, and then it works."""
    before = share(orchestrator)
    orchestrator.fail(step, lambda: Conflict("somebody is in the way"), when=when)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator))
        now = await migrated.held("Conflict")
        assert now.trouble is not None
        assert now.trouble.step == "handover"
        assert {verbs.RESUME, verbs.ROLLBACK} <= set(now.trouble.choices)
        assert orchestrator.before("app01").spec == before.spec
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    assert_handed_over(orchestrator, run(story()), before)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("end", ["completed", "rolled_back"])
def test_every_act_may_lose_its_answer(orchestrator: Orchestrator, run: Run, end: str) -> None:
    before = share(orchestrator)
    acts = ["look", "release", "adopt", "define", "verify", "abandon", "reclaim", "forget_source"]
    for act in acts:
        for when in ("before", "after"):
            orchestrator.fail(f"handover.{act}", lambda: Unavailable("the line is cut"), when=when)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator, confirm=WAIT))
        await migrated.phase(Phase.CONFIRM)
        await migrated.say(verbs.CONFIRM if end == "completed" else verbs.ROLLBACK)
        return await migrated.report()

    report = run(story())
    if end == "completed":
        assert_handed_over(orchestrator, report, before)
    else:
        orchestrator.assert_given_back(report, before)


def test_health_that_fails_rolls_back_if_the_plan_says_so(orchestrator: Orchestrator, run: Run) -> None:
    before = share(orchestrator)
    plan = shared_plan(
        orchestrator,
        health={"checks": [{"kind": "console", "pattern": "never"}], "timeout_s": 1.0, "on_failure": "rollback"},
    )
    report = run(orchestrator.migrate(plan))
    orchestrator.assert_given_back(report, before)
    assert "health checks did not pass" in report.reason


def test_two_storages_of_one_name_are_found_out(orchestrator: Orchestrator, run: Run) -> None:
    """Pools named alike on different storage: refused, nothing touched, no note left."""
    orchestrator.source.add_pool(POOL, 1 << 30)
    orchestrator.target.add_pool(POOL, 1 << 30)
    orchestrator.source.add_vm("app01", pool=POOL)
    report = run(orchestrator.migrate(shared_plan(orchestrator)))
    assert report.outcome == "refused"
    assert "handover.same-storage" in report.reason
    assert orchestrator.source.calls_of("handover.release", "compute.force_off", "compute.request_stop") == []
    assert orchestrator.leftovers(report.status.migration) == []


def test_started_by_hand_before_the_release_the_source_wins(orchestrator: Orchestrator, run: Run) -> None:
    """An operator who starts it between stop and release keeps it; the migration asks."""
    before = share(orchestrator)
    held = orchestrator.hold("handover.release")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator))
        await orchestrator.reached(held)
        MemoryCloud(orchestrator.source_name).compute.start(before.spec.ref)
        held.open()
        await migrated.held("Conflict")
        assert orchestrator.before("app01").spec == before.spec
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
    assert_never_double(orchestrator)


def test_two_migrations_of_one_vm(orchestrator: Orchestrator, run: Run) -> None:
    """The slower one finds the disks taken, goes back without starting anything, and the quicker one completes."""
    before = share(orchestrator)
    late = orchestrator.hold("handover.release", fits=lambda wanted: wanted.spec.name == "app01")

    async def story() -> tuple[MigrationReport, MigrationReport]:
        slow = await orchestrator.start(shared_plan(orchestrator))
        await orchestrator.reached(late)
        quick = await orchestrator.start(shared_plan(orchestrator, confirm=WAIT))
        await quick.phase(Phase.CONFIRM)
        late.open()
        await slow.held("Conflict")
        await slow.say(verbs.ROLLBACK)
        rolled = await slow.report()
        await quick.say(verbs.CONFIRM)
        return rolled, await quick.report()

    rolled, done = run(story())
    assert rolled.outcome == "rolled_back"
    # The slower one had stopped the VM when the quicker one first looked at it.
    assert_handed_over(orchestrator, done, before, power=Power.OFF)


def test_precheck_verb_and_cutover_do_not_fit(orchestrator: Orchestrator, run: Run) -> None:
    share(orchestrator)
    held = orchestrator.hold("handover.look")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator))
        await orchestrator.reached(held)
        assert "stops the source by itself" in await migrated.refused(verbs.CUTOVER)
        assert "rounds are not running" in await migrated.refused(verbs.SYNC_NOW)
        held.open()
        return await migrated.report()

    assert run(story()).outcome == "completed"


def test_the_precheck_looks_from_both_sides_and_leaves_nothing(orchestrator: Orchestrator, run: Run) -> None:
    """``whimbrel precheck`` of a plan of this mode: it passes, tells of every rule of it, and no note stays."""
    share(orchestrator)
    plan = shared_plan(orchestrator)

    async def story() -> PrecheckReport:
        report: PrecheckReport = await orchestrator.client.execute_workflow(
            PRECHECK,
            PrecheckInput(plan=plan),
            id=f"precheck/{plan.plan}",
            task_queue=CONTROL_QUEUE,
            result_type=PrecheckReport,
        )
        return report

    report = run(story())
    assert not report.blocked()
    outcomes = {finding.rule: finding.outcome for finding in report.findings if finding.rule.startswith("handover.")}
    assert set(outcomes.values()) == {"ok"}
    assert "handover.same-storage" in outcomes
    assert [key for key in orchestrator.source._state.volumes if "marker" in key[1]] == []
    assert not {"open", "ensure_volume"} & {call.method for call in orchestrator.source.calls}


def test_a_precheck_that_was_killed_leaves_no_note(orchestrator: Orchestrator, run: Run) -> None:
    """A worker dies when the note is written, and the operator rolls back: the note is removed all the same."""
    share(orchestrator)
    held = orchestrator.hold("precheck.run", when="after")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(shared_plan(orchestrator))
        await orchestrator.reached(held)
        migration = (await migrated.status()).migration
        port = MemoryCloud(orchestrator.source_name).handover
        assert port is not None
        port.write_marker(POOL, marker_name(migration), "left by a worker that was killed")
        await migrated.say(verbs.ROLLBACK)
        held.open()
        return await migrated.report()

    report = run(story())
    assert report.outcome == "rolled_back"
    assert orchestrator.leftovers(report.status.migration) == []
