"""Exit codes of our processes are those that were meant, also after a worker ran (SDK 1.35 may abort at exit)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.ports import lend_port
from whimbrel.runtime.devserver import DevServer

REPOSITORY = Path(__file__).resolve().parents[2]


def _leave(*words: str, address: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TEMPORAL_ADDRESS": address} if address else dict(os.environ)
    return subprocess.run(
        [sys.executable, "-m", "tests.runtime.leaver", *words],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "code"),
    [("0", 0), ("1", 1), ("3", 3), ("interrupt", 130), ("system-exit", 7), ("system-exit-text", 1), ("error", 1)],
)
def test_exit_codes(how: str, code: int) -> None:
    done = _leave(how)
    assert done.returncode == code, done.stderr
    assert "said before the end" in done.stdout, "output is flushed"
    assert ("unforeseen" in done.stderr) is (how == "error")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import asyncio

    server = DevServer(tmp_path_factory.mktemp("exits"), lend_port(), lend_port(), bound=True)
    server.start()
    try:
        asyncio.run(_ready(server))
        yield server.address
    finally:
        server.stop()


async def _ready(server: DevServer) -> None:
    await server.ready()


@pytest.mark.parametrize("turn", range(10))
def test_after_a_worker_ran(address: str, turn: int) -> None:
    """Without our way of leaving, about every third of these ended with 134 or 139."""
    code = turn % 4
    assert _leave(str(code), "worker", address=address).returncode == code
