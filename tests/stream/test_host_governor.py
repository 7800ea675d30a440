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
from tests.dataplane.test_governor import Clock, contend
from tests.stream.streams import MIB, PATIENCE_S, REPOSITORY, Process, config_for, make_source, until
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.stream.hostgovernor import HostGovernor
from whimbrel.stream.place import governor_file

DRAW = """
import sys, time
from pathlib import Path
from whimbrel.dataplane.governor import Priority
from whimbrel.stream.hostgovernor import HostGovernor
share = HostGovernor(Path(sys.argv[1]), 10e6).share(Priority.HYDRATION)
print("ready", flush=True)
begin, taken = float(sys.stdin.readline()), 0
time.sleep(max(begin - time.monotonic(), 0))
end = begin + 2.0
while time.monotonic() < end:
    if share.take(65536, lambda: time.monotonic() >= end):
        taken += 65536
print(taken)
"""


def test_two_processes_share_one_limit(tmp_path: Path) -> None:
    """What both get in the same 2 s; a busy machine makes it less, and nothing makes it more."""
    argv = [sys.executable, "-c", DRAW, str(tmp_path / "governor")]
    processes = [
        subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begin = time.monotonic() + 0.3
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{begin}\n")
        process.stdin.flush()
    taken = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert 0 < sum(taken) < 24e6


def contended(path: Path, *priorities: Priority) -> list[int]:
    """Bytes that governors of one file let pass in 10 s of a clock of our own; each is what a process has."""
    clock = Clock()
    governors = [HostGovernor(path, 10e6, clock=clock) for _ in priorities]
    shares = [governor.share(priority) for governor, priority in zip(governors, priorities, strict=True)]
    return contend(clock, shares, 10)


def test_together_they_get_the_limit_and_no_less(tmp_path: Path) -> None:
    taken = contended(tmp_path / "governor", Priority.HYDRATION, Priority.HYDRATION, Priority.HYDRATION)
    assert sum(taken) == pytest.approx(100e6, rel=0.05)


def test_a_demand_in_one_process_goes_before_the_background_in_another(tmp_path: Path) -> None:
    background, demand = contended(tmp_path / "governor", Priority.HYDRATION, Priority.MISS)
    assert background == pytest.approx(5e6, rel=0.2)
    assert demand + background == pytest.approx(100e6, rel=0.05)


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
    """Both want as much as they can get: together they keep the host's limit."""
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
        thread.start()
        server.start()
        until(lambda: server.status()["statistics"]["background_bytes"], "the first fetch")
        time.sleep(2)
        together = server.status()["statistics"]["background_bytes"] + drawn_bytes[0]
        elapsed = time.monotonic() - began
        assert drawn_bytes[0]
        assert together < limit * elapsed + MIB
    finally:
        ending.set()
        thread.join(PATIENCE_S)
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
