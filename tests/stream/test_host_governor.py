"""One limit for several processes."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest
from pydantic import ValidationError

import worker
from tests.stream.streams import MIB, REPOSITORY, Process, config_for, make_source, until
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.stream.hostgovernor import HostGovernor
from whimbrel.stream.place import governor_file

DRAW = """
import sys, time
from pathlib import Path
from whimbrel.dataplane.governor import Priority
from whimbrel.stream.hostgovernor import HostGovernor
share = HostGovernor(Path(sys.argv[1]), 10e6).share(Priority(int(sys.argv[2])))
sys.stdin.readline()
end, taken = time.monotonic() + 2.0, 0
while time.monotonic() < end:
    if share.take(65536, lambda: time.monotonic() >= end):
        taken += 65536
print(taken)
"""


def drawn(path: Path, *priorities: Priority) -> list[int]:
    """Bytes that processes of these priorities got in 2 s, side by side."""
    argv = [sys.executable, "-c", DRAW, str(path)]
    processes = [
        subprocess.Popen(
            [*argv, str(int(priority))], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for priority in priorities
    ]
    time.sleep(1.0)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [int(process.communicate(timeout=60)[0]) for process in processes]


def test_two_processes_share_one_limit(tmp_path: Path) -> None:
    taken = drawn(tmp_path / "governor", Priority.HYDRATION, Priority.HYDRATION)
    assert 12e6 < sum(taken) < 24e6
    assert min(taken) > 2e6


def test_a_demand_in_one_process_goes_before_the_background_in_another(tmp_path: Path) -> None:
    demand, background = drawn(tmp_path / "governor", Priority.MISS, Priority.HYDRATION)
    assert demand > 4 * background
    assert background > 0
    assert demand + background < 24e6


def test_damage_and_another_boot_are_a_fresh_start(tmp_path: Path) -> None:
    now = [1000.0]
    path = tmp_path / "governor"
    path.write_bytes(b"\xff" * 200)
    governor = HostGovernor(path, 1e6, clock=lambda: now[0])
    share = governor.share(Priority.DELTA)
    assert share.reserve(500_000) == 0
    assert share.reserve(1) == pytest.approx(0.5)
    other = HostGovernor(path, 1e6, clock=lambda: now[0])
    assert other.share(Priority.DELTA).reserve(1) == pytest.approx(0.5)
    now[0] = 5.0
    rebooted = HostGovernor(path, 1e6, clock=lambda: now[0])
    assert rebooted.share(Priority.DELTA).reserve(1) == 0
    governor.set_host_limit(None)
    assert rebooted.share(Priority.DELTA).reserve(10**9) == 0
    assert rebooted.share(Priority.DELTA).reserve(10**9) == 0


def test_a_workers_copies_and_a_server_share_it(spot: Path) -> None:
    """What a copy draws while a stream hydrates is missing there: together they keep the host's limit."""
    size, limit = 8 * MIB, 4e6
    assert type(worker.host_governor(spot, None)) is Governor
    make_source(spot / "source.raw", size, share=1.0)
    config = config_for(spot, size, governor_path=str(governor_file(spot)), host_limit_bytes_per_s=limit)
    server, copy, ending = Process(spot, config), worker.host_governor(spot, limit).share(Priority.BASELINE), Event()
    drawn_bytes = [0]

    def draw() -> None:
        while copy.take(65536, ending.is_set):
            drawn_bytes[0] += 65536

    thread = Thread(target=draw)
    try:
        began = time.monotonic()
        server.start()
        thread.start()
        time.sleep(2)
        fetched = server.status()["statistics"]["background_bytes"]
        elapsed = time.monotonic() - began
        assert 0 < fetched < drawn_bytes[0]
        assert drawn_bytes[0] + fetched < limit * elapsed + MIB
    finally:
        ending.set()
        thread.join(10)
        server.kill()


def _complete(server: Process) -> bool:
    return bool(server.status()["complete"])


def test_two_servers_obey_it(spot: Path) -> None:
    size, limit = 8 * MIB, 4e6
    with pytest.raises(ValidationError):
        config_for(spot, size, governor_path=str(spot / "governor"))
    servers = []
    try:
        for name in ("a", "b"):
            directory = spot / name
            directory.mkdir()
            make_source(directory / "source.raw", size, share=1.0)
            config = config_for(directory, size, governor_path=str(spot / "governor"), host_limit_bytes_per_s=limit)
            servers.append(Process(directory, config))
        began = time.monotonic()
        for server in servers:
            server.start()
        for server in servers:
            until(partial(_complete, server), "end of the hydration")
        elapsed = time.monotonic() - began
        # Each starts with what the bucket holds, and the last request may be in debt.
        assert elapsed > (2 * size - 2 * MIB) / limit
    finally:
        for server in servers:
            server.kill()
