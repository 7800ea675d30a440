"""Whole migrations without a fault: between two OpenStack clouds, and between OpenStack and KVM in both directions."""

from __future__ import annotations

import pytest

from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e_openstack.kvm_site import KvmSite
from tests.e2e_openstack.nova_site import NovaSite
from tests.e2e_openstack.scene import Scene, SceneMaker
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def stage(installation: Installation) -> OpenStackStage:
    assert isinstance(installation.stage, OpenStackStage)
    return installation.stage


def test_cold_between_unlike_pools(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate("cold")
    report = scene.confirm(running)
    scene.moved(running, report)
    assert [record.kind for record in report.status.rounds] == ["baseline"]
    assert any(record.kind == "final" for record in scene.boots()[0].records)


def test_incremental_of_two_disks_of_a_writing_guest(scene: Scene) -> None:
    scene.boot(data_disks=1, dirty_kib=256)
    running = scene.migrate()
    running.phase(Phase.CONFIRM, timeout_s=240)
    assert not scene.source.running(scene.name)
    report = scene.confirm(running)
    scene.moved(running, report)
    kinds = [record.kind for record in report.status.rounds]
    assert (kinds[0], kinds[-1]) == ("baseline", "final")
    assert set(kinds[1:-1]) == {"delta"}
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes / 2


@pytest.mark.small
def test_from_kvm(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    scene = new_scene(source=KvmSite(stage, "a"))
    scene.boot()
    assert isinstance(scene.target, NovaSite)
    *_, largest = scene.target.handle.flavors
    running = scene.migrate(placement={"sizes": {"*": largest}, "zone": "nova"})
    report = scene.confirm(running)
    server = scene.target.server(scene.name)
    assert server is not None
    assert (server.flavor.original_name, server.availability_zone) == (largest, "nova")
    scene.moved(running, report)
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes / 2


@pytest.mark.small
def test_to_kvm(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    scene = new_scene(source=NovaSite(stage.openstack.cloud("a")), target=KvmSite(stage, "b"))
    scene.boot(dirty_kib=128)
    running = scene.migrate()
    report = scene.confirm(running)
    scene.moved(running, report)
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes / 2


@pytest.mark.parametrize("keep_writes", [True, False], ids=["with-writes", "without-writes"])
def test_rollback_after_the_target_has_written(scene: Scene, keep_writes: bool) -> None:
    scene.boot()
    running = scene.migrate(keep_writes=keep_writes)
    running.phase(Phase.CONFIRM, timeout_s=240)
    scene.wait_records(2, 5)
    running.say("rollback", reason="the new site is slow")
    report = running.report(timeout_s=240)
    scene.untouched(running, report, boots=3 if keep_writes else 2)
    assert report.source_restored is True
    if keep_writes:
        assert report.writes_kept_bytes is not None
        assert report.writes_kept_bytes > 0
    else:
        assert report.writes_kept_bytes is None
