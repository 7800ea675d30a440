"""One attempt at a time, also between processes, and never for ever."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from whimbrel.errors import NotReady
from whimbrel.exclusion import alone, lock_path

REPOSITORY = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from whimbrel.exclusion import alone
with alone("test", sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


def test_threads_take_turns(name: str) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with alone("test", name):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_other_names_do_not_wait(name: str) -> None:
    with alone("test", name), alone("test", name + "x", wait_s=0):
        pass
    assert lock_path("a", "b") != lock_path("ab")


def test_a_holder_that_stays_is_not_waited_for_for_ever(name: str) -> None:
    with alone("test", name), pytest.raises(NotReady), alone("test", name, wait_s=0.2):
        pass
    with alone("test", name, wait_s=0):
        pass


def test_a_killed_process_holds_nothing(name: str) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", HOLD, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(NotReady), alone("test", name, wait_s=0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with alone("test", name, wait_s=30):
            pass
