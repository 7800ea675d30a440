"""Drills between OpenStack clouds: from a snapshot of the running guest, on the network that is joined to nothing."""

from __future__ import annotations

from typing import Any

import pytest

from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e.running import Running
from tests.e2e_openstack.kvm_site import KvmSite
from tests.e2e_openstack.nova_site import NovaSite
from tests.e2e_openstack.scene import Scene, SceneMaker
from whimbrel.model.progress import MigrationReport, Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(480)]
COPIES: dict[str, Any] = {"networks": {"*": "drill"}, "timeout_s": 240.0, "hydrate": True, "data": "copy"}
MEANT = ("/drills/", "/traces/")
"""What a drill leaves in the worker's state: its record."""


def _rehearse(scene: Scene, **drill: Any) -> Running:
    plan = scene.plan(drill={**COPIES, **drill}, health={"checks": []})
    running = Running(scene.installation, plan, scene.installation.rehearse(plan))
    scene.running.append(running)
    return running


def _only_the_source(scene: Scene, running: Running, report: MigrationReport) -> None:
    """It runs on as it was defined and writes; nothing of the drill is in either cloud."""
    assert report.leftovers == ()
    assert scene.source.running(scene.name)
    assert scene.source.definition(scene.name) == scene.defined
    written = len(scene.boots()[-1].records)
    scene.wait_records(1, written + 2)
    assert [boot.number for boot in scene.boots()] == [1]
    left = scene.remains(running, arrived=False)
    assert [line for line in left if not any(part in line for part in MEANT)] == []


def test_a_drill_and_the_migration_that_asks_for_it(scene: Scene) -> None:
    scene.boot(data_disks=1, dirty_kib=128)
    assert isinstance(scene.source, NovaSite)
    assert isinstance(scene.target, NovaSite)
    (card,) = scene.source.cards(scene.name)
    running = _rehearse(scene, checks=[{"kind": "console", "pattern": "WBREC1 kind=run boot=2"}])
    running.phase(Phase.VERIFY, timeout_s=300)
    (rehearsed,) = scene.target.cards(f"{scene.name}-drill")
    assert rehearsed == (card[0], card[1], "drill")
    report = running.report(timeout_s=300)
    assert report.outcome == "completed", report.reason
    assert report.drill is not None
    assert (report.drill.passed, report.drill.copied, report.drill.compared) == (True, True, True)
    _only_the_source(scene, running, report)
    moving = scene.migrate(require_drill_s=3600.0, drill=COPIES)
    scene.moved(moving, scene.confirm(moving))


def test_a_drill_that_does_not_pass_is_taken_down_too(scene: Scene) -> None:
    scene.boot()
    running = _rehearse(scene, checks=[{"kind": "console", "pattern": "never shown"}], timeout_s=20.0)
    report = running.report(timeout_s=300)
    assert report.outcome == "rolled_back"
    assert "never shown" in report.reason
    assert report.drill is not None
    assert not report.drill.passed
    _only_the_source(scene, running, report)
    refused = scene.migrate(require_drill_s=3600.0, drill=COPIES).report()
    assert refused.outcome == "refused"
    assert "drill.required" in refused.reason


def test_a_guest_of_kvm_is_rehearsed_in_nova(new_scene: SceneMaker, installation: Installation) -> None:
    stage = installation.stage
    assert isinstance(stage, OpenStackStage)
    scene = new_scene(source=KvmSite(stage, "a"), target=NovaSite(stage.openstack.cloud("a")))
    scene.boot()
    running = _rehearse(scene, checks=[{"kind": "console", "pattern": "WBREC1 kind=run boot=2"}])
    report = running.report(timeout_s=400)
    assert report.outcome == "completed", report.reason
    assert report.drill is not None
    assert (report.drill.passed, report.drill.copied, report.drill.compared) == (True, True, True)
    _only_the_source(scene, running, report)
