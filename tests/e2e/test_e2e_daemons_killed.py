"""libvirtd and the Temporal server die and come back."""

from __future__ import annotations

import time

import pytest

from tests.e2e.images import MIB
from tests.e2e.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]


def test_libvirtd_of_the_source_killed_in_the_baseline(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=8e6)
    scene.wait_copied(running, 4 * MIB)
    scene.installation.bounce_libvirtd("a")
    scene.moved(running, scene.confirm(running))


def test_temporal_killed_in_the_baseline(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=8e6)
    scene.wait_copied(running, 4 * MIB)
    scene.installation.kill_server()
    scene.installation.start_server()
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
def test_temporal_killed_at_the_confirm_gate(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate()
    running.phase(Phase.CONFIRM)
    scene.installation.kill_server()
    time.sleep(5)
    scene.installation.start_server()
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
def test_libvirtd_of_the_target_killed_in_the_baseline(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=8e6)
    scene.wait_copied(running, 4 * MIB)
    scene.installation.bounce_libvirtd("b")
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["a", "b"])
def test_libvirtd_killed_at_the_cutover(scene: Scene, cloud: str) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    running.say("cutover")
    running.step("stop the source")
    scene.installation.bounce_libvirtd(cloud, down_s=3)
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
def test_libvirtd_of_the_source_down_for_long(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    done = running.rounds(2).rounds_done
    scene.installation.bounce_libvirtd("a", down_s=30)
    running.rounds(done + 2)
    running.say("cutover")
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
def test_libvirtd_of_the_target_killed_while_rolling_back(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 4 * MIB)
    scene.stage.lab.kill_libvirtd("b")
    running.say("rollback")
    running.running_step("undo: ")
    scene.stage.lab.start_libvirtd("b")
    scene.untouched(running, running.report())
