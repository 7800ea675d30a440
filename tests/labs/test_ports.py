"""Ports that are lent stay free for whoever was lent them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from labs import ports
from labs.ports import lend_port

REPOSITORY = Path(__file__).resolve().parents[2]
LEND = """
import sys
from labs import ports
ports._ports = lambda: range(19_000, 19_003)
print(ports.lend_port(), flush=True)
sys.stdin.read()
"""


def test_ports_are_below_those_that_the_kernel_gives_and_lent_once() -> None:
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    lent = [lend_port() for _ in range(50)]
    assert len(set(lent)) == 50
    assert all(1024 < port < below for port in lent)
    for port in lent:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_another_process_is_not_lent_them_until_this_one_has_ended() -> None:
    """Three processes have three ports to choose from."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEND],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    lent = []
    for process in processes:
        assert process.stdout is not None
        lent.append(int(process.stdout.readline()))
    assert set(lent) == {19_000, 19_001, 19_002}
    for process in processes:
        process.communicate(timeout=60)
    with subprocess.Popen(
        [sys.executable, "-c", LEND], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as again:
        told, _ = again.communicate(timeout=60)
    assert int(told) in set(lent)


def test_a_port_with_a_listener_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_ports", lambda: range(19_100, 19_102))
    with socket.create_server(("127.0.0.1", 19_100)):
        assert lend_port() == 19_101
        with pytest.raises(RuntimeError, match="no port"):
            lend_port()
    assert lend_port() == 19_100
