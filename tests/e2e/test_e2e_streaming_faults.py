"""While a guest runs on data that is still arriving, everything around it dies: it goes on, and misses nothing."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.e2e.remains import sessions
from tests.e2e.running import PATIENCE_S, Running, told
from tests.e2e.scene import Scene
from tests.e2e.test_e2e_streaming import kill_server, server_pid, streamed, wait_server
from whimbrel.model.naming import shadow_key
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
CRAWL = 3e4
"""Bytes per second: nothing ends by itself before a test allows it, on a machine with ten times the load either."""


def arriving(scene: Scene, protect: str = "none") -> Running:
    """The target runs and writes, and most of its data is at the source."""
    scene.boot("qcow2")
    running = scene.migrate("streaming", bandwidth_bytes_per_s=CRAWL, stream={"protect": protect})
    running.phase(Phase.HYDRATE)
    scene.wait_boots(2)
    return running


def goes_on(scene: Scene, running: Running, *, records: int = 5) -> None:
    """The guest writes, and data is still missing: what was done was done in the middle."""
    newest = scene.boots()[-1]
    assert newest.number == 2
    scene.wait_records(2, len(newest.records) + records)
    now = running.until(lambda _: True, "a status")
    assert now.phase is Phase.HYDRATE
    assert now.hydrated_at is None


def ends_well(scene: Scene, running: Running, *, timeout_s: float = PATIENCE_S) -> None:
    """The rest arrives, is compared, and the guest is on its own disks with every record."""
    running.say("set_bandwidth", bytes_per_s=None)
    streamed(scene, running, scene.confirm(running, timeout_s=timeout_s))


def export(scene: Scene, running: Running, *, shadow: bool = False) -> tuple[str, int]:
    """Name and process of what serves the source's disks, or their shadow."""
    wanted = shadow_key(running.migration)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = sessions(scene.stage, "a", running.migration)
        fitting = [(name, pid) for name, pid in found.items() if (name == wanted) is shadow]
        if fitting:
            assert len(fitting) == 1, found
            return fitting[0]
        assert time.monotonic() < deadline, f"nobody serves the source: {found}; {told(running.status())}"
        time.sleep(0.1)


def kill_export(scene: Scene, running: Running, *, shadow: bool = False) -> None:
    """SIGKILL to what serves the source's disks (or their shadow); returns when another does."""
    _, pid = export(scene, running, shadow=shadow)
    os.kill(pid, signal.SIGKILL)
    wait_export(scene, running, other_than=pid, shadow=shadow)


def wait_export(scene: Scene, running: Running, *, other_than: int, shadow: bool = False) -> None:
    """Wait until another process serves the source's disks (or their shadow)."""
    pid = other_than
    deadline = time.monotonic() + PATIENCE_S
    while (now := export(scene, running, shadow=shadow)[1]) == pid or not _alive(now):
        assert time.monotonic() < deadline, "nobody has opened the source again"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_daemons_server_and_export_die_while_data_arrives(scene: Scene) -> None:
    running = arriving(scene)
    _, pid = export(scene, running)
    os.kill(pid, signal.SIGKILL)
    for cloud in ("a", "b"):
        scene.installation.bounce_libvirtd(cloud)
    scene.installation.kill_server()
    scene.installation.start_server()
    wait_server(scene, running, kill_server(scene, running))
    wait_export(scene, running, other_than=pid)
    goes_on(scene, running)
    ends_well(scene, running)


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["a", "b"])
def test_libvirtd_is_down_while_the_last_byte_arrives(scene: Scene, cloud: str) -> None:
    running = arriving(scene)
    scene.stage.lab.kill_libvirtd(cloud)
    running.say("set_bandwidth", bytes_per_s=None)
    before = len(scene.boots()[-1].records)
    time.sleep(20)
    scene.wait_records(2, before + 20)
    scene.stage.lab.start_libvirtd(cloud)
    streamed(scene, running, scene.confirm(running))


@pytest.mark.slow
def test_temporal_is_down_for_long(scene: Scene) -> None:
    running = arriving(scene)
    pid = server_pid(scene, running)
    scene.installation.kill_server()
    before = len(scene.boots()[-1].records)
    time.sleep(40)
    scene.wait_records(2, before + 20)
    # Nobody watches now, and a server that dies is started again all the same.
    os.kill(pid, signal.SIGKILL)
    scene.wait_records(2, len(scene.boots()[-1].records) + 10)
    scene.installation.start_server()
    goes_on(scene, running)
    ends_well(scene, running)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protect", ["none", "mirror", "journal"])
def test_the_export_is_killed_again_and_again(scene: Scene, protect: str) -> None:
    running = arriving(scene, protect)
    for number in range(4):
        kill_export(scene, running, shadow=protect != "none" and number % 2 == 1)
        goes_on(scene, running)
    ends_well(scene, running)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protect", ["none", "mirror"])
def test_the_export_hangs_for_a_while(scene: Scene, protect: str) -> None:
    """Longer than the server waits for an answer: it begins anew, and so does the migration."""
    running = arriving(scene, protect)
    stopped = [export(scene, running)[1]]
    if protect != "none":
        stopped.append(export(scene, running, shadow=True)[1])
    for seconds in (5, 60):
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        goes_on(scene, running)
    ends_well(scene, running)


@pytest.mark.slow
@pytest.mark.parametrize("protect", ["mirror", "journal"])
def test_the_shadow_dies_at_the_confirm_gate(scene: Scene, protect: str) -> None:
    """Everything has arrived, and the guest still needs its shadow."""
    running = arriving(scene, protect)
    running.say("set_bandwidth", bytes_per_s=None)
    running.phase(Phase.CONFIRM)
    kill_export(scene, running, shadow=True)
    wait_server(scene, running, kill_server(scene, running))
    scene.wait_records(2, len(scene.boots()[-1].records) + 20)
    running.say("confirm")
    streamed(scene, running, running.report())


@pytest.mark.slow
@pytest.mark.parametrize("protect", ["mirror", "journal"])
def test_the_shadow_dies_as_the_operator_confirms(scene: Scene, protect: str) -> None:
    """Nobody opens it again: from here on the guest needs nothing of the source."""
    running = arriving(scene, protect)
    running.say("set_bandwidth", bytes_per_s=None)
    running.phase(Phase.CONFIRM)
    os.kill(export(scene, running, shadow=True)[1], signal.SIGKILL)
    scene.stage.lab.kill_libvirtd("a")
    running.say("confirm")
    running.until(lambda now: now.switched_at is not None, "the hot switch")
    scene.wait_records(2, len(scene.boots()[-1].records) + 10)
    scene.stage.lab.start_libvirtd("a")
    streamed(scene, running, running.report())


def test_kills_at_random_moments_and_a_rollback(scene: Scene) -> None:
    """The small form of all this: server, export and shadow die under a guest that writes, and no record is lost."""
    rng = random.Random()
    running = arriving(scene, "journal")
    for victim in ("server", "shadow", "server", "export", "server"):
        time.sleep(rng.uniform(0.0, 1.5))
        if victim == "server":
            wait_server(scene, running, kill_server(scene, running))
        else:
            os.kill(export(scene, running, shadow=victim == "shadow")[1], signal.SIGKILL)
    goes_on(scene, running)
    running.say("rollback")
    report = running.report()
    assert report.writes_kept_bytes
    scene.wait_boots(3)
    scene.untouched(running, report, boots=3)


@pytest.mark.slow
@pytest.mark.parametrize("protect", ["mirror", "journal"])
def test_a_rollback_while_the_export_dies(scene: Scene, protect: str) -> None:
    """What the target wrote comes back, though what it is written to was killed on the way."""
    running = arriving(scene, protect)
    kill_export(scene, running, shadow=True)
    goes_on(scene, running, records=20)
    os.kill(export(scene, running, shadow=True)[1], signal.SIGKILL)
    running.say("rollback")
    report = running.report()
    scene.wait_boots(3)
    scene.untouched(running, report, boots=3)
