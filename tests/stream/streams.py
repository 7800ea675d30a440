"""Streaming servers, sources and clients for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from whimbrel.errors import WhimbrelError
from whimbrel.model.endpoint import FileEndpoint, NbdEndpoint
from whimbrel.nbd import NbdDevice, open_nbd
from whimbrel.stream import ListenAt, StreamConfig, ask

CHUNK = 64 << 10
MIB = 1 << 20
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 90.0


def until(done: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """Wait until ``done()`` is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := done():
            return value
        time.sleep(0.02)
    raise TimeoutError(f"no {what} within {seconds} s")


def make_source(path: Path, size: int, seed: int = 1, *, share: float = 0.7) -> bytes:
    """A raw file with data in about ``share`` of its chunks, holes elsewhere; its content."""
    rng, content = random.Random(seed), bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, CHUNK):
            if rng.random() < share:
                content[start : start + CHUNK] = rng.randbytes(min(CHUNK, size - start))
                file.seek(start)
                file.write(content[start : start + CHUNK])
    return bytes(content)


def config_for(
    directory: Path, size: int, source: NbdEndpoint | FileEndpoint | None = None, **more: Any
) -> StreamConfig:
    """A server in ``directory`` on ``directory/nbd``; its source is ``directory/source.raw`` if not given."""
    values: dict[str, Any] = {
        "target_path": str(directory / "target.raw"),
        "map_stem": str(directory / "map"),
        "size_bytes": size,
        "source": source or FileEndpoint(path=str(directory / "source.raw")),
        "source_identity": "test",
        "listen": (ListenAt(unix_path=str(directory / "nbd")),),
        "control_path": str(directory / "control"),
    }
    return StreamConfig(**{**values, **more})


def client_of(config: StreamConfig, timeout_s: float = PATIENCE_S) -> NbdDevice:
    """Our own client, writing."""
    return open_nbd(NbdEndpoint(unix_path=config.listen[0].unix_path, writable=True), timeout_s=timeout_s)


class Process:
    """``python -m whimbrel.stream`` with a configuration; may be killed and started again."""

    def __init__(self, directory: Path, config: StreamConfig) -> None:
        self.config = config
        self._file = directory / "config.json"
        self._file.write_text(config.model_dump_json(), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "whimbrel.stream", str(self._file)], cwd=REPOSITORY, env=environment
        )
        until(self._answers, "answer of the server")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the server ended with {self._process.returncode}")
        try:
            return bool(self.status()["pid"] == self._process.pid)
        except WhimbrelError:
            return False

    def status(self) -> dict[str, Any]:
        return ask(Path(self.config.control_path), "status")

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        return ask(Path(self.config.control_path), verb, **arguments)

    def drain(self) -> None:
        """Wait until the shadow has everything."""
        until(lambda: self.ask("drain")["drained"], "end of the drain")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)


@contextlib.contextmanager
def process(directory: Path, config: StreamConfig) -> Iterator[Process]:
    """A running server; killed at the end."""
    server = Process(directory, config)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def qemu_io(uri: str, *commands: str) -> str:
    """Run qemu-io commands on a URI, raw."""
    argv = ["qemu-io", "-f", "raw"]
    for command in commands:
        argv += ["-c", command]
    done = subprocess.run([*argv, uri], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "error" not in done.stdout.lower(), done.stdout
    assert "failed" not in done.stdout.lower(), done.stdout
    return done.stdout


def json_of(*argv: str) -> Any:
    """The JSON that a program prints."""
    return json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout)
