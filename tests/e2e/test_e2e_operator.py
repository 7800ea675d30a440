"""The operator's verbs on a real migration."""

from __future__ import annotations

import time

import pytest

from tests.e2e.images import MIB
from tests.e2e.running import Running
from tests.e2e.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def _allocated(scene: Scene, running: Running) -> int:
    return sum(path.stat().st_blocks for path in scene.target_images(running))


def test_pause_resume_bandwidth_sync_and_cutover(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(
        bandwidth_bytes_per_s=4e6, rounds={"cutover": "manual", "min_interval_s": 300.0, "max_interval_s": 600.0}
    )
    scene.wait_copied(running, 12 * MIB)
    assert "nothing to confirm" in running.refused("confirm")

    running.say("pause")
    deadline = time.monotonic() + 60
    while running.pending():
        assert time.monotonic() < deadline, "the copy did not stop"
        time.sleep(0.1)
    held = _allocated(scene, running)
    time.sleep(3)
    assert _allocated(scene, running) == held
    assert running.status().paused

    running.say("set_bandwidth", bytes_per_s=64e6)
    running.say("resume")
    assert running.rounds(2, timeout_s=30).bandwidth_bytes_per_s == 64e6

    time.sleep(2)
    assert running.status().rounds_done == 2, "the next round is minutes away"
    running.say("sync_now")
    running.rounds(3)
    assert running.status().phase is Phase.ROUNDS

    running.say("cutover")
    report = scene.confirm(running)
    scene.moved(running, report)
    assert report.status.rounds[0].sent_bytes < 34 * MIB, "what was copied before the pause is not sent again"
