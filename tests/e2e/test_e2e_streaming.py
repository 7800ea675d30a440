"""A real guest boots before its data is there, writes all along, and ends on its own disks."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, Running
from tests.e2e.scene import Scene
from whimbrel.errors import Unavailable
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.stream.control import ask

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
SLOW = 4e5
"""Bytes per second: slow enough to do something while the data arrives, and a minute must pass before it is there."""


def control(scene: Scene, running: Running, disk: str = "vda") -> Path:
    """Control socket of a disk's server."""
    return scene.stage.directory / "state" / "sockets" / f"{running.migration}-{disk}.ctl"


def server_pid(scene: Scene, running: Running, disk: str = "vda") -> int:
    """The process that serves the disk."""
    return int(ask(control(scene, running, disk), "status")["pid"])


def kill_server(scene: Scene, running: Running, disk: str = "vda") -> int:
    """SIGKILL the disk's server; its pid."""
    pid = server_pid(scene, running, disk)
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_server(scene: Scene, running: Running, other_than: int, disk: str = "vda") -> None:
    """Wait until another process serves the disk."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if int(ask(control(scene, running, disk), "status")["pid"]) != other_than:
                return
        except Unavailable:
            pass
        time.sleep(0.05)
    raise AssertionError("nobody has started the server again")


def streamed(scene: Scene, running: Running, report: MigrationReport) -> None:
    """On b with everything; its images are plain files that nobody serves."""
    scene.moved(running, report)
    status = report.status
    assert status.hydrated_at is not None
    assert status.switched_at is not None
    assert status.stream is not None
    assert status.stream.missing_bytes == 0
    assert list((scene.stage.directory / "state").glob(f"streams/{running.migration}")) == []
    assert "IOERR" not in scene.guest.console_text()


def test_two_disks_with_the_server_killed_on_the_way(scene: Scene) -> None:
    scene.boot("qcow2", "raw")
    running = scene.migrate("streaming", bandwidth_bytes_per_s=SLOW)
    running.phase(Phase.HYDRATE)
    scene.wait_boots(2)
    pid = kill_server(scene, running)
    wait_server(scene, running, pid)
    running.say("set_bandwidth", bytes_per_s=None)
    report = scene.confirm(running)
    streamed(scene, running, report)


def test_protected_writes_come_back(scene: Scene) -> None:
    scene.boot("qcow2", "raw")
    running = scene.migrate("streaming", stream={"protect": "mirror"})
    running.phase(Phase.CONFIRM)
    scene.wait_records(2, 20)
    running.say("rollback")
    report = running.report()
    assert report.writes_kept_bytes
    # The source goes on with what the target wrote: it counts this as its third boot.
    scene.wait_boots(3)
    scene.untouched(running, report, boots=3)


def test_after_pre_copy_little_is_streamed(scene: Scene) -> None:
    scene.boot("qcow2")
    running = scene.migrate("streaming", stream={"precopy": True})
    report = scene.confirm(running)
    streamed(scene, running, report)
    figures = report.status.stream
    assert figures is not None
    assert figures.demand_bytes + figures.background_bytes < report.status.rounds[0].sent_bytes / 2


@pytest.mark.slow
def test_the_worker_killed_while_data_arrives(scene: Scene) -> None:
    scene.boot("qcow2")
    running = scene.migrate("streaming", bandwidth_bytes_per_s=SLOW)
    running.phase(Phase.HYDRATE)
    for worker in scene.stage.workers:
        worker.kill()
    scene.wait_boots(2)
    before = len(scene.boots()[1].records)
    scene.wait_records(2, before + 10)
    scene.installation.make_whole()
    running.say("set_bandwidth", bytes_per_s=None)
    streamed(scene, running, scene.confirm(running))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("protect", ["none", "mirror", "journal"])
def test_twenty_kills_of_the_server_under_a_writing_guest(scene: Scene, protect: str) -> None:
    rng = random.Random(7)
    scene.boot("qcow2", size_mib=128, data_mib=64)
    running = scene.migrate("streaming", bandwidth_bytes_per_s=1e6, stream={"protect": protect})
    running.phase(Phase.HYDRATE)
    scene.wait_boots(2)
    for _ in range(20):
        time.sleep(rng.uniform(0.2, 2.0))
        pid = kill_server(scene, running)
        wait_server(scene, running, pid)
    running.say("set_bandwidth", bytes_per_s=None)
    streamed(scene, running, scene.confirm(running, timeout_s=200))
