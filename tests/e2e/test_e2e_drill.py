"""A running guest is rehearsed on an isolated network; it goes on writing and notices nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.running import PATIENCE_S, Running
from tests.e2e.scene import Scene, definition
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
ISOLATED: dict[str, Any] = {"networks": {"*": "drill"}, "timeout_s": 120.0}


def rehearse(scene: Scene, plan: VmPlan, *, from_copy: bool = False) -> Running:
    """Start the drill of a plan."""
    running = Running(scene.installation, plan, scene.installation.rehearse(plan, from_copy=from_copy))
    scene.running.append(running)
    return running


def only_source(scene: Scene, running: Running, *, migrating: bool = False) -> None:
    """The source writes on in its first boot; nothing of the drill is on b.

    While the VM is ``migrating``, only what bears the drill's id is the drill's.
    """
    guest = scene.guest
    last = guest.last_record()
    deadline = time.monotonic() + PATIENCE_S
    while guest.last_record() == last:
        assert time.monotonic() < deadline, "the source does not write any more"
        time.sleep(0.1)
    assert guest.boot_count() == 1
    connection = scene.stage.lab.connect("b")
    try:
        assert [one.name() for one in connection.listAllDomains() if guest.name in one.name()] == []
    finally:
        connection.close()
    # The record and the guest's reads are what a drill is for.
    meant = ("/traces/", "/drills/")
    left = [line for line in scene.remains(running, set()) if not any(part in line for part in meant)]
    assert [line for line in left if running.migration in line or not migrating] == []


def test_a_drill_then_the_migration_that_requires_it(scene: Scene) -> None:
    if not scene.stage.lab.has_network("a"):
        pytest.skip("this machine can have no bridges, so no isolated network")
    scene.boot("qcow2")
    before = definition(scene.stage, scene.guest.name)
    plan = scene.plan("streaming", require_drill_s=3600.0, drill={**ISOLATED, "hydrate": True})
    running = rehearse(scene, plan)
    report = running.report()
    assert report.outcome == "completed", report.reason
    assert report.drill is not None
    assert report.drill.passed
    assert report.drill.compared
    assert report.drill.figures is not None
    assert report.drill.figures.hits + report.drill.figures.misses > 0
    assert definition(scene.stage, scene.guest.name) == before
    only_source(scene, running)
    traces = list((scene.stage.directory / "state" / "traces").glob("*/vda/*.trace"))
    assert [path for path in traces if running.migration in path.name]
    moving = scene.migrate("streaming", require_drill_s=3600.0, drill=ISOLATED)
    scene.moved(moving, scene.confirm(moving))


def test_a_running_migration_lends_its_copy_and_goes_on(scene: Scene) -> None:
    """The state of a finished round boots on the isolated network, while rounds go on and the source is not asked."""
    if not scene.stage.lab.has_network("a"):
        pytest.skip("this machine can have no bridges, so no isolated network")
    scene.boot("qcow2")
    changes: dict[str, Any] = {"rounds": {"cutover": "manual"}, "drill": {**ISOLATED, "hydrate": True}}
    moving = scene.migrate("incremental", **changes)
    moving.rounds(2)
    drill = rehearse(scene, moving.plan, from_copy=True)
    drill.phase(Phase.VERIFY)
    moving.rounds(moving.status().rounds_done + 2)  # under the copy that is lent
    report = drill.report()
    assert report.outcome == "completed", report.reason
    assert report.drill is not None
    assert report.drill.from_copy
    assert report.drill.passed
    assert report.drill.compared
    only_source(scene, drill, migrating=True)
    moving.say("cutover")
    scene.moved(moving, scene.confirm(moving))


@pytest.mark.slow
def test_a_cutover_does_not_wait_for_a_drill_of_its_copy(scene: Scene) -> None:
    """The drill ends, says why, and leaves nothing; the migration goes on."""
    if not scene.stage.lab.has_network("a"):
        pytest.skip("this machine can have no bridges, so no isolated network")
    scene.boot("qcow2")
    never: dict[str, Any] = {**ISOLATED, "checks": [{"kind": "console", "pattern": "never shown"}]}
    moving = scene.migrate("incremental", rounds={"cutover": "manual"}, drill=never)
    moving.rounds(2)
    drill = rehearse(scene, moving.plan, from_copy=True)
    drill.phase(Phase.VERIFY)
    moving.say("cutover")
    moved = scene.confirm(moving)
    report = drill.report()
    assert report.outcome == "rolled_back"
    assert "taken back" in report.reason
    assert report.leftovers == ()
    scene.moved(moving, moved)


@pytest.mark.slow
def test_a_drill_that_copies_before_it_boots(scene: Scene) -> None:
    if not scene.stage.lab.has_network("a"):
        pytest.skip("this machine can have no bridges, so no isolated network")
    scene.boot("qcow2", "raw")
    running = rehearse(scene, scene.plan("incremental", drill={**ISOLATED, "hydrate": True, "data": "copy"}))
    report = running.report()
    assert report.outcome == "completed", report.reason
    assert report.drill is not None
    assert (report.drill.passed, report.drill.copied, report.drill.compared) == (True, True, True)
    only_source(scene, running)


@pytest.mark.slow
def test_a_drill_that_is_called_off_leaves_nothing(scene: Scene) -> None:
    if not scene.stage.lab.has_network("a"):
        pytest.skip("this machine can have no bridges, so no isolated network")
    scene.boot("qcow2")
    plan = scene.plan("cold", drill={**ISOLATED, "checks": [{"kind": "console", "pattern": "never shown"}]})
    running = rehearse(scene, plan)
    running.phase(Phase.VERIFY)
    running.say("rollback")
    report = running.report()
    assert report.outcome == "rolled_back"
    only_source(scene, running)
