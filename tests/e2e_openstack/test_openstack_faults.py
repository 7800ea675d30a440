"""Services and workers that die in the middle of a migration between OpenStack clouds."""

from __future__ import annotations

import time

import pytest

from labs.openstack_stage import OpenStackStage
from tests.e2e_openstack.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(480)]
SLOW_BYTES_PER_S = 4e6
"""So that something is still being copied when the fault comes."""


def test_cinder_volume_is_away_for_a_while(scene: Scene) -> None:
    """Snapshots wait for it; the migration goes on by itself when it is back."""
    assert isinstance(scene.stage, OpenStackStage)
    lab = scene.stage.openstack
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=SLOW_BYTES_PER_S)
    running.activity("copy.disk", timeout_s=120)
    lab.stop("a-cinder-volume")
    time.sleep(15)
    lab.start("a-cinder-volume")
    running.say("set_bandwidth")
    scene.moved(running, scene.confirm(running, timeout_s=300))


@pytest.mark.slow
def test_nova_api_restarts_and_the_worker_dies_in_the_baseline(scene: Scene) -> None:
    assert isinstance(scene.stage, OpenStackStage)
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=SLOW_BYTES_PER_S)
    running.activity("copy.disk", timeout_s=120)
    scene.installation.replace_worker()
    scene.stage.openstack.restart("b-nova-api")
    running.say("set_bandwidth")
    scene.moved(running, scene.confirm(running, timeout_s=300))


@pytest.mark.slow
def test_the_worker_dies_in_the_cutover(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate()
    running.phase(Phase.CUTOVER, timeout_s=180)
    scene.installation.replace_worker()
    scene.moved(running, scene.confirm(running, timeout_s=300))
