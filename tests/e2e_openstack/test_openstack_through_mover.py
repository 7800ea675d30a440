"""Migrations whose OpenStack side no worker reaches directly: out of cloud a and into it, through mover servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.kvm import KvmLab
from labs.openstack import OpenStackLab
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation, installed
from tests.e2e_openstack.kvm_site import KvmSite
from tests.e2e_openstack.nova_site import NovaSite
from tests.e2e_openstack.scene import SceneMaker
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]
ROUNDS = {"outage_budget_s": 900.0, "max_rounds": 2}


@pytest.fixture(scope="module")
def installation(
    openstack_lab: OpenStackLab, kvm_lab: KvmLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """As for the other modes, on cloud a alone."""
    with installed(OpenStackStage.on(tmp_path_factory.mktemp("stage"), openstack_lab, kvm_lab)) as made:
        yield made


@pytest.fixture
def stage(installation: Installation) -> OpenStackStage:
    assert isinstance(installation.stage, OpenStackStage)
    return installation.stage


def test_to_kvm_through_a_mover(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    """Every round reads the whole volume, and sends only what differs from the round before."""
    scene = new_scene(source=NovaSite(stage.openstack.cloud("a"), mover=True), target=KvmSite(stage, "b"))
    scene.same_length = False
    scene.boot(dirty_kib=128, size_mib=192)
    running = scene.migrate(rounds=ROUNDS)
    report = scene.confirm(running, timeout_s=1200)
    scene.moved(running, report)
    rounds = report.status.rounds
    assert [rounds[0].kind, rounds[-1].kind] == ["baseline", "final"]
    assert rounds[-1].sent_bytes < rounds[0].sent_bytes / 2


def test_from_kvm_through_a_mover(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    scene = new_scene(source=KvmSite(stage, "a"), target=NovaSite(stage.openstack.cloud("a"), mover=True))
    scene.same_length = False
    scene.boot()
    running = scene.migrate(rounds=ROUNDS)
    report = scene.confirm(running, timeout_s=1200)
    scene.moved(running, report)
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes / 2


def test_rollback_reads_the_targets_writes_through_a_mover(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    scene = new_scene(source=KvmSite(stage, "a"), target=NovaSite(stage.openstack.cloud("a"), mover=True))
    scene.boot()
    running = scene.migrate(rounds=ROUNDS, keep_writes=True)
    running.phase(Phase.CONFIRM, timeout_s=900)
    scene.wait_records(2, 5)
    running.say("rollback", reason="the new site is slow")
    report = running.report(timeout_s=600)
    scene.untouched(running, report, boots=3)
    assert report.source_restored is True
    assert report.writes_kept_bytes
