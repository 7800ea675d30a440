"""The worker's tokens end in the middle of a migration: nobody has to do anything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from labs.openstack_stage import OpenStackStage
from tests.e2e_openstack import tokens
from tests.e2e_openstack.nova_site import until
from tests.e2e_openstack.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]
SLOW_BYTES_PER_S = 5e5
VERY_SLOW_BYTES_PER_S = 1e5
"""The baseline takes many times the life of a token."""
LIFE_S = 60
"""keystoneauth asks for another half a minute before."""


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


def test_they_expire_in_the_baseline(scene: Scene) -> None:
    """None of those that the migration began with is good any more when its rounds, and its cutover, come."""
    stage = scene.stage
    assert isinstance(stage, OpenStackStage)
    clouds = [stage.openstack.cloud(name) for name in stage.openstack.names]
    scene.boot()
    with tokens.short_lived(stage.openstack, LIFE_S):
        assert all(tokens.life_s(cloud) <= LIFE_S for cloud in clouds)
        scene.installation.replace_worker()  # the one before has tokens of a day
        running = scene.migrate(bandwidth_bytes_per_s=VERY_SLOW_BYTES_PER_S)
        running.activity("copy.disk", timeout_s=400)
        worker = scene.installation.worker.process.pid
        before = tokens.held(worker)
        assert before
        until(lambda: all(tokens.good(cloud, before) == 0 for cloud in clouds), "all have expired", 5 * LIFE_S)
        assert running.status().phase is Phase.BASELINE
        running.say("set_bandwidth")
        # so many new tokens make every step slower
        running.phase(Phase.CONFIRM, timeout_s=400)
        running.say("confirm")
        scene.moved(running, running.report(timeout_s=400))
        assert scene.installation.worker.process.pid == worker, "nobody started another"
    assert all(tokens.life_s(cloud) > 3600 for cloud in clouds), "the lab gives tokens as before"


def _forget_what_was_good(stage: OpenStackStage, *services: str) -> None:
    names = [f"{cloud}-{service}-api" for cloud in stage.openstack.names for service in services]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stage.openstack.restart, names))
