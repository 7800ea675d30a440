"""Ports that are lent stay free for whoever was lent them."""

from __future__ import annotations

import secrets
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
ports.CLAIM, few = sys.argv[1], [int(port) for port in sys.argv[2:]]
ports._ports = lambda: few
print(ports.lend_port(), flush=True)
sys.stdin.read()
"""


def lender(claim: str, few: list[int]) -> subprocess.Popen[str]:
    """A process that is lent one of a few ports, and keeps it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", LEND, claim, *map(str, few)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def lent_to(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_ports_are_below_those_that_the_kernel_gives_and_lent_once() -> None:
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    lent = [lend_port() for _ in range(50)]
    assert len(set(lent)) == 50
    assert all(1024 < port < below for port in lent)
    for port in lent:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_another_process_is_not_lent_them_until_this_one_has_ended() -> None:
    """Three processes have three ports to choose from, which nobody but this test is lent."""
    claim, few = secrets.token_hex(8), [lend_port() for _ in range(3)]
    processes = [lender(claim, few) for _ in few]
    assert {lent_to(process) for process in processes} == set(few)
    for process in processes:
        process.communicate(timeout=60)
    with lender(claim, few) as again:
        assert lent_to(again) in few


def test_a_port_with_a_listener_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = lend_port(), lend_port()
    monkeypatch.setattr(ports, "CLAIM", secrets.token_hex(8))
    monkeypatch.setattr(ports, "_ports", lambda: [taken, free])
    with socket.create_server(("127.0.0.1", taken)):
        assert lend_port() == free
        with pytest.raises(RuntimeError, match="no port"):
            lend_port()
    assert lend_port() == taken
