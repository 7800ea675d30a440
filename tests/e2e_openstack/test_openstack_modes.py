"""Whole migrations between two OpenStack clouds without a fault."""

from __future__ import annotations

import pytest

from tests.e2e_openstack.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(420)]


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
