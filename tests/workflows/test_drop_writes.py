"""Giving up the target's writes in a rollback, when its cloud does not answer any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

from tests.workflows.bench import MIB, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import NotFound
from whimbrel.model.progress import Phase
from whimbrel.model.vm import Power

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_rollback_that_cannot_read_the_target_goes_on_without_writes(orchestrator: Orchestrator, run: Run) -> None:
    """The reverse copy is held, the operator gives the writes up, the source runs as it was at the cutover."""
    source, target = orchestrator.source, orchestrator.target
    vm = source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    source.write_disk("app01", "vda", 0, os.urandom(MIB))
    target.when_guest_runs("app01", lambda ref: target.guest_write(ref, "vda", 0, b"\x11" * 65536))
    plan = orchestrator.plan("app01", keep_writes=True, confirm={"then": "wait"})

    async def story() -> Any:
        migration = await orchestrator.start(plan)
        await migration.phase(Phase.CONFIRM)
        before = source.read_disk("app01", "vda")
        fault = target.fail("points", "open", lambda: NotFound("the target's host is gone"), times=None)
        await migration.say(verbs.ROLLBACK)
        held = await migration.phase(Phase.ATTENTION)
        assert held.trouble is not None
        assert held.trouble.code == "NotFound"
        answer = await migration.say(verbs.ROLLBACK, drop_writes=True)
        target.clear(fault)
        return before, answer, await migration.report()

    before, answer, report = run(story())
    assert "without the target's writes" in answer
    assert report.outcome == "rolled_back"
    assert "given up" in report.reason
    assert report.writes_kept_bytes is None
    assert source.read_disk("app01", "vda") == before
    assert orchestrator.clouds.get(orchestrator.source_name).compute.power(vm.ref) is Power.RUNNING
    assert report.source_restored is True
    assert orchestrator.leftovers(report.status.migration) == []


def test_writes_are_dropped_at_once_when_asked_with_the_rollback(orchestrator: Orchestrator, run: Run) -> None:
    """No reverse copy is tried, and a second wish to drop is refused."""
    source, target = orchestrator.source, orchestrator.target
    source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    target.when_guest_runs("app01", lambda ref: target.guest_write(ref, "vda", 0, b"\x11" * 65536))
    plan = orchestrator.plan("app01", keep_writes=True, confirm={"then": "wait"})

    async def story() -> Any:
        migration = await orchestrator.start(plan)
        await migration.phase(Phase.CONFIRM)
        before = source.read_disk("app01", "vda")
        await migration.say(verbs.ROLLBACK, drop_writes=True)
        return before, await migration.report()

    before, report = run(story())
    assert source.read_disk("app01", "vda") == before
    assert not any(call.method == "open_disk_writer" for call in source.calls)
    assert orchestrator.leftovers(report.status.migration) == []
