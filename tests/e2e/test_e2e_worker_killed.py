"""Workers die by SIGKILL in the middle of each phase."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.images import MIB
from tests.e2e.scene import Scene
from whimbrel.model.progress import MigrationReport, Phase

DATA_MIB = 32
"""In the upper half of the disk of 64 MiB, so that what is left after a cursor is known."""
HALF_WAY_BYTES = 44 * MIB
pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]


def assert_went_on(report: MigrationReport, cursor: int) -> None:
    """The last attempt read no more than what lay behind the cursor."""
    assert cursor >= HALF_WAY_BYTES
    assert 0 < report.status.rounds[0].read_bytes <= 64 * MIB - cursor


def test_worker_killed_in_the_baseline(scene: Scene) -> None:
    scene.boot(data_mib=DATA_MIB)
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_cursor(running, HALF_WAY_BYTES)
    scene.installation.kill_worker()
    cursor = scene.cursor(running)
    scene.installation.start_worker()
    report = scene.confirm(running)
    scene.moved(running, report)
    assert_went_on(report, cursor)


@pytest.mark.slow
def test_worker_killed_in_a_delta_round(scene: Scene) -> None:
    scene.boot(dirty_kib=2048)
    running = scene.migrate(bandwidth_bytes_per_s=8e6, rounds={"cutover": "manual"})
    running.rounds(1)
    running.say("set_bandwidth", bytes_per_s=1e6)
    running.running_step("round ")
    running.activity("copy.disk")
    scene.installation.replace_worker()
    done = running.until(lambda now: True, "an answer").rounds_done
    running.rounds(done + 1)
    running.say("set_bandwidth")
    running.say("cutover")
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
def test_worker_killed_in_the_final_delta(scene: Scene) -> None:
    scene.boot(dirty_kib=2048)
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    running.say("set_bandwidth", bytes_per_s=1e6)
    running.say("cutover")
    running.running_step("final delta")
    running.activity("copy.disk")
    assert not scene.guest.is_running("a")
    scene.installation.replace_worker()
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "activity"), [("stop the source", None), ("final delta", "point.open"), ("start the target", None)]
)
def test_worker_killed_in_a_call_of_the_cutover(scene: Scene, step: str, activity: str | None) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    running.say("cutover")
    running.running_step(step)
    if activity is not None:
        running.activity(activity)
    scene.installation.replace_worker()
    report = scene.confirm(running, timeout_s=180)
    scene.moved(running, report)


@pytest.mark.slow
def test_worker_killed_while_the_targets_writes_are_brought_back(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(keep_writes=True)
    running.phase(Phase.CONFIRM)
    scene.wait_boots(2)
    scene.guest.set_dirty_kib(4096)
    scene.wait_records(2, 20)
    running.say("set_bandwidth", bytes_per_s=1e6)
    running.say("rollback")
    running.phase(Phase.ROLLING_BACK)
    running.activity("copy.disk")
    scene.installation.replace_worker()
    scene.untouched(running, running.report(), boots=3)


@pytest.mark.slow
def test_worker_killed_while_it_undoes(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 8 * MIB)
    running.say("rollback")
    running.running_step("undo: ")
    scene.installation.replace_worker()
    scene.untouched(running, running.report(timeout_s=240))


@pytest.mark.slow
def test_worker_ended_in_the_baseline(scene: Scene) -> None:
    """SIGTERM, as for an upgrade: it ends soon and well, and another goes on."""
    scene.boot(data_mib=DATA_MIB)
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_cursor(running, HALF_WAY_BYTES)
    leaving = scene.installation.worker
    assert leaving.stop() == 0
    cursor = scene.cursor(running)
    scene.installation.start_worker()
    report = scene.confirm(running)
    scene.moved(running, report)
    assert_went_on(report, cursor)
    assert "Traceback" not in "".join(
        line for line in leaving.log.read_text().splitlines() if '"level": "error"' in line
    )


@pytest.mark.slow
def test_one_of_two_workers_killed(scene: Scene) -> None:
    scene.boot(data_mib=DATA_MIB)
    scene.installation.start_worker()
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_cursor(running, HALF_WAY_BYTES)
    pid = int(running.activity("copy.disk").partition("@")[0])
    copying = next(worker for worker in scene.stage.workers if worker.process.pid == pid)
    os.kill(pid, signal.SIGKILL)
    copying.process.wait()
    cursor = scene.cursor(running)
    report = scene.confirm(running)
    assert len([worker for worker in scene.stage.workers if worker.alive]) == 1
    scene.moved(running, report)
    assert_went_on(report, cursor)
