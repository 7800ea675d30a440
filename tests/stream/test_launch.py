"""Launching, adopting, supervising and stopping a server that outlives who started it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stream.streams import MIB, config_for, make_source, until
from whimbrel.errors import Conflict, InvalidPlan, Unavailable
from whimbrel.stream import StreamConfig, ask, launch, stop
from whimbrel.stream.launch import _alive, _supervisor, unit_of

SIZE = 2 * MIB


@pytest.fixture
def config(spot: Path) -> Iterator[StreamConfig]:
    make_source(spot / "source.raw", SIZE)
    made = config_for(spot, SIZE)
    (spot / "disk.json").write_text(made.model_dump_json(), encoding="utf-8")
    yield made
    stop(spot / "control", config_path=spot / "disk.json")


def pid_of(spot: Path) -> int:
    try:
        return int(ask(spot / "control", "status")["pid"])
    except Unavailable:
        return 0


def files_of(pid: int) -> set[str]:
    """What its descriptors lead to; some come and go while it serves."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def why_not(config_path: Path) -> str:
    """What a launch says that does not wait for long; the server is tried again by itself meanwhile."""
    with pytest.raises(Unavailable) as refused:
        launch(config_path, timeout_s=0.5)
    return str(refused.value)


def test_launch_adopts_what_runs_and_the_supervisor_starts_it_again(spot: Path, config: StreamConfig) -> None:
    os.environ["WTEST_SECRET"] = "not for the server"
    threads = [threading.Thread(target=launch, args=(spot / "disk.json",)) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            thread.join()
        del os.environ["WTEST_SECRET"]
    first = pid_of(spot)
    assert first
    assert os.getsid(first) != os.getsid(0)
    assert b"WTEST_SECRET" not in Path(f"/proc/{first}/environ").read_bytes()
    inherited = files_of(first)
    assert not [name for name in inherited if name.startswith("/") and not name.startswith((str(spot), "/dev/null"))]
    launch(spot / "disk.json")
    assert pid_of(spot) == first
    os.kill(first, signal.SIGKILL)
    second = until(lambda: pid_of(spot) not in {0, first} and pid_of(spot), "restart by the supervisor")
    launch(spot / "disk.json")
    assert pid_of(spot) == second
    stop(spot / "control")
    assert not _alive(second)
    until(lambda: _supervisor(spot / "disk.json") is None, "end of the supervisor")
    stop(spot / "control")
    launch(spot / "disk.json")
    third = pid_of(spot)
    supervisor = _supervisor(spot / "disk.json")
    assert supervisor is not None
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: not _alive(third), "end by the supervisor")


def test_a_server_that_lost_its_parent_gets_another_by_the_next_launch(spot: Path, config: StreamConfig) -> None:
    launch(spot / "disk.json")
    first, parent = pid_of(spot), _supervisor(spot / "disk.json")
    assert parent is not None
    os.kill(parent, signal.SIGKILL)
    until(lambda: _supervisor(spot / "disk.json") is None, "end of the parent")
    launch(spot / "disk.json")
    assert _supervisor(spot / "disk.json") not in {None, parent}
    assert pid_of(spot) == first
    os.kill(first, signal.SIGKILL)
    second = until(lambda: pid_of(spot) not in {0, first} and pid_of(spot), "server of the other parent")

    parent = _supervisor(spot / "disk.json")
    assert parent is not None
    os.kill(parent, signal.SIGKILL)
    until(lambda: _supervisor(spot / "disk.json") is None, "end of the other parent")
    launch(spot / "disk.json")
    stop(spot / "control")
    assert not _alive(second)
    until(lambda: _supervisor(spot / "disk.json") is None, "end of the parent, for the server ended in order")
    assert pid_of(spot) == 0


def test_another_streams_server_is_not_adopted(spot: Path, config: StreamConfig) -> None:
    launch(spot / "disk.json")
    other = config.model_copy(update={"source_identity": "another"})
    (spot / "other.json").write_text(other.model_dump_json(), encoding="utf-8")
    with pytest.raises(Conflict, match="another stream"):
        launch(spot / "other.json")


def test_a_server_that_cannot_start_says_why(spot: Path, config: StreamConfig) -> None:
    (spot / "target.raw").write_bytes(b"somebody's data")
    until(lambda: "holds data, and there is no chunk map" in why_not(spot / "disk.json"), "the reason")
    assert _supervisor(spot / "disk.json")
    stop(spot / "control", config_path=spot / "disk.json")
    assert _supervisor(spot / "disk.json") is None
    (spot / "disk.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidPlan):
        launch(spot / "disk.json")


def test_a_source_that_moved_is_told_to_the_running_server(spot: Path, config: StreamConfig) -> None:
    (spot / "source.raw").rename(spot / "moved.raw")
    launch(spot / "disk.json")
    until(lambda: ask(spot / "control", "status")["source"]["error"], "word of the source's loss")
    with pytest.raises(InvalidPlan, match="no shadow"):
        ask(spot / "control", "shadow", endpoint={"kind": "file", "path": "/nowhere"})
    with pytest.raises(InvalidPlan):
        ask(spot / "control", "source", endpoint={"kind": "pigeon", "path": "none"})
    ask(spot / "control", "source", endpoint={"kind": "file", "path": str(spot / "moved.raw")})
    until(lambda: ask(spot / "control", "status")["complete"], "end of the hydration")
    assert (spot / "target.raw").read_bytes() == (spot / "moved.raw").read_bytes()


def test_stop_waits_for_nobody(spot: Path) -> None:
    stop(spot / "nothing", config_path=spot / "nothing.json")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(spot / "dead"))
    stop(spot / "dead")


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="no systemd-escape here")
@pytest.mark.parametrize("path", ["/var/lib/whimbrel/streams/vm-1/sda.json", "/x/a b/ü.json"])
def test_the_units_name_is_what_systemd_makes_of_the_path(path: str) -> None:
    argv = ["systemd-escape", "--path", "--template=whimbrel-stream@.service", path]
    assert unit_of(Path(path)) == subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_systemd_that_is_not_there_is_told(spot: Path, config: StreamConfig) -> None:
    with pytest.raises(Unavailable, match="systemctl start whimbrel-stream@"):
        launch(spot / "disk.json", launcher="systemd", timeout_s=1)
