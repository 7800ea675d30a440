"""Mode ``streaming`` into a Nova guest: the server runs on a volume that is not filled yet."""

from __future__ import annotations

import pytest

from tests.e2e_openstack.nova_site import NovaSite
from tests.e2e_openstack.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(420)]


def test_a_writing_guest_arrives_while_it_runs(scene: Scene) -> None:
    scene.boot(dirty_kib=128)
    running = scene.migrate("streaming")
    running.phase(Phase.CONFIRM, timeout_s=300)
    report = scene.confirm(running)
    outage = report.status.outage
    assert outage is not None
    print(f"outage {outage.seconds()} s: {outage}")  # noqa: T201 - a figure for docs/openstack.md
    scene.moved(running, report)
    assert isinstance(scene.target, NovaSite)
    features = scene.target.features(scene.name)
    assert {"exclusive-lock", "object-map", "fast-diff"} <= features
    assert "migrating" not in features


@pytest.mark.parametrize("keep_writes", [True, False], ids=["with-writes", "without-writes"])
def test_rollback_after_the_target_has_written(scene: Scene, keep_writes: bool) -> None:
    scene.boot()
    running = scene.migrate("streaming")
    running.phase(Phase.CONFIRM, timeout_s=300)
    scene.wait_records(2, 5)
    running.say("rollback", reason="the new site is slow", drop_writes=not keep_writes)
    report = running.report(timeout_s=240)
    scene.untouched(running, report, boots=3 if keep_writes else 2)
    assert report.source_restored is True
    assert bool(report.writes_kept_bytes) is keep_writes
