"""Drills whose data is copied before they boot: where the target cannot run a VM on served disks, or as asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drivers.memory import MemoryCloud
from tests.workflows.bench import Orchestrator
from tests.workflows.drills import assert_untouched, rehearsed_vm, the_record
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict, Unavailable

Run = Callable[..., Any]
DRILL = {"networks": {"*": "drill-net"}, "timeout_s": 60.0, "hydrate": True}


def _plan(orchestrator: Orchestrator, *, drill: dict[str, Any] | None = None, **changes: Any) -> Any:
    return orchestrator.plan("app01", **{"drill": {**DRILL, **(drill or {})}, **changes})


@pytest.mark.parametrize("how", ["auto", "copy"])
def test_the_copy_boots_on_the_isolated_network_and_goes(orchestrator: Orchestrator, run: Run, how: str) -> None:
    before = rehearsed_vm(orchestrator)
    if how == "auto":
        orchestrator.target.set_capabilities(serve_disks=False)
    seen: dict[str, bytes] = {}
    networks: list[str] = []

    def guest(ref: str) -> None:
        vm = MemoryCloud(orchestrator.target_name).compute.inspect(ref)
        networks.extend(nic.network for nic in vm.nics)
        seen.update({disk.key: orchestrator.target.read_disk(ref, disk.key) for disk in vm.disks})
        orchestrator.target.guest_write(ref, "vda", 0, b"only in the rehearsal")

    orchestrator.target.when_guest_runs("app01-drill", guest)

    async def story() -> None:
        report = await (await orchestrator.rehearse(_plan(orchestrator, drill={"data": how}))).report()
        assert report.outcome == "completed", report.reason
        assert_untouched(orchestrator, report, before)
        assert seen == before.content
        assert set(networks) == {"drill-net"}
        assert "stream.serve" not in orchestrator.started()
        record = the_record(orchestrator, before)
        assert (record.passed, record.copied, record.compared, record.from_copy) == (True, True, True, False)
        assert record.frozen_at is not None
        assert record.figures is None

    run(story())


def test_where_the_plan_wants_a_stream_nothing_is_copied(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)
    orchestrator.target.set_capabilities(serve_disks=False)

    async def story() -> None:
        report = await (await orchestrator.rehearse(_plan(orchestrator, drill={"data": "stream"}))).report()
        assert report.outcome == "refused"
        assert "drill.data: auto" in report.reason
        assert_untouched(orchestrator, report, before)

    run(story())


def test_without_hydrate_nothing_is_compared(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator, drill={"data": "copy", "hydrate": False})
        report = await (await orchestrator.rehearse(plan)).report()
        assert report.outcome == "completed", report.reason
        assert "compare.disk" not in orchestrator.started()
        assert not the_record(orchestrator, before).compared
        assert_untouched(orchestrator, report, before)

    run(story())


@pytest.mark.parametrize("activity", ["volume.open_writer", "copy.disk", "compare.disk", "compute.start"])
def test_a_step_that_fails_ends_it_and_leaves_nothing(orchestrator: Orchestrator, run: Run, activity: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        orchestrator.fail(activity, lambda: Conflict("no"), fits=_is_the_drills)
        report = await (await orchestrator.rehearse(_plan(orchestrator, drill={"data": "copy"}))).report()
        assert report.outcome == "rolled_back", report.reason
        assert not the_record(orchestrator, before).passed
        assert_untouched(orchestrator, report, before)

    run(story())


def _is_the_drills(wanted: Any) -> bool:
    """Not what the precheck tries."""
    return not str(getattr(wanted, "key", "")).endswith("p000")


def test_a_copy_that_breaks_off_goes_on(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        orchestrator.fail("copy.disk", lambda: Unavailable("the export has gone"))
        report = await (await orchestrator.rehearse(_plan(orchestrator, drill={"data": "copy"}))).report()
        assert report.outcome == "completed", report.reason
        assert the_record(orchestrator, before).compared
        assert_untouched(orchestrator, report, before)

    run(story())


@pytest.mark.parametrize("door", ["copy.disk", "compute.start", "health.check"])
def test_it_can_be_called_off(orchestrator: Orchestrator, run: Run, door: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        held = orchestrator.hold(door)
        drill = await orchestrator.rehearse(_plan(orchestrator, drill={"data": "copy"}))
        await orchestrator.reached(held)
        await drill.say(verbs.ROLLBACK)
        held.open()
        report = await drill.report()
        assert report.outcome == "rolled_back"
        assert_untouched(orchestrator, report, before)

    run(story())


def test_a_running_migrations_copy_is_copied_once_more(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(
            orchestrator,
            drill={"data": "copy"},
            rounds={"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.2},
        )
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done >= 2)
        report = await (await orchestrator.rehearse(plan, from_copy=True)).report()
        assert report.outcome == "completed", report.reason
        assert report.leftovers == ()
        record = the_record(orchestrator, before)
        assert (record.passed, record.copied, record.compared, record.from_copy) == (True, True, True, True)
        await migrated.say(verbs.CUTOVER)
        orchestrator.assert_moved(await migrated.report(), before)

    run(story())
