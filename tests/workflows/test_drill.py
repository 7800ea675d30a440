"""Drill on in-memory clouds: rehearsed, recorded, taken down; and the gate that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activities.drill import last_passed
from drivers.memory import MemoryCloud
from tests.workflows.bench import Orchestrator
from tests.workflows.drills import assert_untouched, records, rehearsed_vm
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict
from whimbrel.model.vm import Power

Run = Callable[..., Any]
DAY_S = 86400.0


def _plan(orchestrator: Orchestrator, **changes: Any) -> Any:
    drill = {"networks": {"*": "drill-net"}, "timeout_s": 60.0, **changes.pop("drill", {})}
    return orchestrator.plan("app01", **{"drill": drill, **changes})


@pytest.mark.parametrize("hydrate", [False, True])
def test_a_drill_passes_and_leaves_its_record_only(orchestrator: Orchestrator, run: Run, hydrate: bool) -> None:
    before = rehearsed_vm(orchestrator)
    seen: list[str] = []

    def guest(ref: str) -> None:
        vm = MemoryCloud(orchestrator.target_name).compute.inspect(ref)
        seen.extend(nic.network for nic in vm.nics)
        orchestrator.target.guest_write(ref, "vda", 0, b"only in the rehearsal")

    orchestrator.target.when_guest_runs("app01-drill", guest)

    async def story() -> None:
        plan = _plan(orchestrator, drill={"hydrate": hydrate})
        report = await (await orchestrator.rehearse(plan)).report()
        assert report.outcome == "completed", report.reason
        assert report.status.mode == "drill"
        assert_untouched(orchestrator, report, before)
        assert set(seen) == {"drill-net"}
        (record,) = records(orchestrator, before)
        assert record.passed
        assert record.hydrated is hydrate
        assert record.compared is hydrate
        assert record.boot_s is not None
        assert record.figures is not None
        assert report.drill == record
        assert orchestrator.before("app01").spec.power is Power.RUNNING

    run(story())


def test_a_drill_that_fails_is_taken_down_and_recorded_as_failed(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        checks = [{"kind": "console", "pattern": "never shown"}]
        plan = _plan(orchestrator, drill={"checks": checks, "timeout_s": 1.5})
        report = await (await orchestrator.rehearse(plan)).report()
        assert report.outcome == "rolled_back"
        assert "the drill failed" in report.reason
        assert_untouched(orchestrator, report, before)
        (record,) = records(orchestrator, before)
        assert not record.passed
        assert "never shown" in record.why
        assert last_passed(orchestrator.state_dir, orchestrator.source_name, before.spec.ref) is None

    run(story())


@pytest.mark.parametrize("activity", ["volume.ensure", "point.open", "stream.serve", "compute.ensure_vm"])
def test_a_step_that_fails_is_not_held_for_anybody(orchestrator: Orchestrator, run: Run, activity: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        orchestrator.fail(
            activity, lambda: Conflict("no"), fits=lambda wanted: getattr(wanted, "key", "").endswith("p000") is False
        )
        report = await (await orchestrator.rehearse(_plan(orchestrator))).report()
        assert report.outcome == "rolled_back"
        assert_untouched(orchestrator, report, before)

    run(story())


@pytest.mark.parametrize("door", ["stream.serve", "compute.start", "health.check"])
def test_a_drill_can_be_called_off(orchestrator: Orchestrator, run: Run, door: str) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        held = orchestrator.hold(door)
        started = await orchestrator.rehearse(_plan(orchestrator))
        await orchestrator.reached(held)
        if door == "health.check":
            await started.cancel()
        else:
            await started.say(verbs.ROLLBACK)
        held.open()
        report = await started.report()
        assert report.outcome == "rolled_back"
        assert_untouched(orchestrator, report, before)
        assert records(orchestrator, before) == []

    run(story())


def test_a_network_with_a_way_out_is_refused(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        report = await (await orchestrator.rehearse(_plan(orchestrator, drill={"networks": {"*": "default"}}))).report()
        assert report.outcome == "refused"
        assert "drill.isolated" in report.reason
        assert_untouched(orchestrator, report, before)

    run(story())


def test_a_migration_that_requires_a_drill_waits_for_a_passed_one(orchestrator: Orchestrator, run: Run) -> None:
    before = rehearsed_vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator, mode="cold", require_drill_s=14 * DAY_S)
        refused = await orchestrator.migrate(plan)
        assert refused.outcome == "refused"
        assert "drill.required" in refused.reason
        assert (await (await orchestrator.rehearse(plan)).report()).outcome == "completed"
        moved = await orchestrator.migrate(plan)
        orchestrator.assert_moved(moved, before)

    run(story())
