"""The worker's tokens are revoked in the middle of a migration: nobody has to do anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from labs.openstack_stage import OpenStackStage
from tests.e2e_openstack import tokens
from tests.e2e_openstack.scene import Scene

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]
SLOW_BYTES_PER_S = 5e5


def test_they_are_revoked_in_the_baseline_and_in_the_cutover(scene: Scene) -> None:
    """The services that had found them good are restarted: by themselves they would believe it for minutes."""
    stage = scene.stage
    assert isinstance(stage, OpenStackStage)
    clouds = [stage.openstack.cloud(name) for name in stage.openstack.names]
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=SLOW_BYTES_PER_S, rounds={"cutover": "manual"})
    running.activity("copy.disk", timeout_s=180)
    worker = scene.installation.worker.process.pid
    for moment in ("baseline", "cutover"):
        if moment == "cutover":
            running.say("cutover")
            running.step("stop the source", timeout_s=120)
        before = tokens.held(worker)
        revoked = {cloud.name: tokens.revoke(cloud, worker) for cloud in clouds}
        assert all(revoked.values()), (moment, revoked)
        _forget_what_was_good(stage, "cinder", "nova")
        if moment == "baseline":
            running.say("set_bandwidth")
            running.rounds(2, timeout_s=240)
            assert all(tokens.good(cloud, before) == 0 for cloud in clouds)
            assert all(tokens.good(cloud, tokens.held(worker)) for cloud in clouds), "the worker asked for new ones"
    scene.moved(running, scene.confirm(running, timeout_s=300))


def _forget_what_was_good(stage: OpenStackStage, *services: str) -> None:
    names = [f"{cloud}-{service}-api" for cloud in stage.openstack.names for service in services]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stage.openstack.restart, names))
