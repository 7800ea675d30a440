"""A whole installation on one machine: Temporal dev server, KVM clouds, worker processes. For the demo and the tests.

Everything lives under one directory; processes are real and separate, so that they can be killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from temporalio.client import Client

from labs.kvm import KvmLab
from labs.ports import lend_port
from whimbrel.runtime.connect import connect
from whimbrel.runtime.devserver import DevServer
from whimbrel.runtime.search_attributes import ensure_search_attributes

REPOSITORY = Path(__file__).resolve().parents[1]
CLOUD_NAMES = {"a": "kvm-a", "b": "kvm-b"}


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (proc(5), field 22 of stat); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


@dataclass
class WorkerProcess:
    """One ``worker.py`` as its own process."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL: no goodbye to anyone."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, then wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None


@dataclass
class Stage:
    """The installation; ``up`` and ``down`` may be called again."""

    directory: Path
    lab: KvmLab
    server: DevServer
    workers: list[WorkerProcess] = field(default_factory=list)
    started: int = 0
    own_server: bool = True
    """False: the Temporal server that the standard environment configuration names is used, and never ended."""

    @classmethod
    def at(cls, directory: Path, *, lab: KvmLab | None = None, own_server: bool = True) -> Stage:
        """A stage under ``directory``; a lab that is up already may be shared."""
        directory.mkdir(parents=True, exist_ok=True)
        server = DevServer(directory / "temporal", lend_port(), lend_port())
        return cls(directory=directory, lab=lab or KvmLab(directory / "lab"), server=server, own_server=own_server)

    async def up(self) -> Client:
        """Bring everything up; a client of the server."""
        self.lab.up(tuple(CLOUD_NAMES))
        self.write_config()
        if not self.own_server:
            client = await connect()
            await ensure_search_attributes(client)
            return client
        if self.server.process is None or self.server.process.poll() is not None:
            self.server.start()
        return await self.server.ready()

    @property
    def config(self) -> Path:
        """``whimbrel.yaml`` of this stage."""
        return self.directory / "whimbrel.yaml"

    def clouds(self) -> dict[str, dict[str, Any]]:
        """The clouds as ``whimbrel.yaml`` names them."""
        return {
            name: {
                "kind": "libvirt",
                "uri": self.lab.uri(cloud),
                "scratch_dir": str(self.lab.scratch_dir(cloud)),
                "runtime_dir": str(self.lab.nbd_dir(cloud)),
                "isolated_networks": ["drill"],
            }
            for cloud, name in CLOUD_NAMES.items()
        }

    def write_config(self) -> None:
        """Name the lab's clouds for workers."""
        state = str(self.directory / "state")
        self.config.write_text(yaml.safe_dump({"version": 1, "state_dir": state, "clouds": self.clouds()}))

    def heal(self) -> None:
        """Start what a test has left dead in the clouds; what runs is left alone."""
        for cloud in CLOUD_NAMES:
            self.lab.start_libvirtd(cloud)

    @property
    def environment(self) -> dict[str, str]:
        """What the worker and the command line need to find this stage."""
        foreign = ("WHIMBREL_", "TEMPORAL_") if self.own_server else ("WHIMBREL_",)
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(foreign)},
            **({"TEMPORAL_ADDRESS": self.server.address} if self.own_server else {}),
            "WHIMBREL_CONFIG": str(self.config),
            "WHIMBREL_LOG_FORMAT": "json",
            "WHIMBREL_GRACEFUL_SHUTDOWN_S": "5",
        }

    def start_worker(self, **environment: str) -> WorkerProcess:
        """Start a worker process; ready when its log says so."""
        self.started += 1
        log = self.directory / f"worker-{self.started}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "worker.py")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=REPOSITORY,
                env={**self.environment, **environment},
                start_new_session=True,
            )
        worker = WorkerProcess(process, log)
        self.workers.append(worker)
        deadline = time.monotonic() + 60
        while b"worker.started" not in log.read_bytes():
            if not worker.alive or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        return worker

    def keep(self) -> None:
        """Write down what runs, so that another process can end it with ``end_kept``."""
        running = [worker.process for worker in self.workers if worker.alive]
        if self.server.process is not None:
            running.append(self.server.process)
        kept = [{"pid": process.pid, "started": _started(process.pid)} for process in running]
        (self.directory / "kept.json").write_text(json.dumps(kept))

    def end_kept(self) -> int:
        """End what an earlier process has kept, and the lab; how many processes were ended."""
        path = self.directory / "kept.json"
        kept = json.loads(path.read_text()) if path.exists() else []
        ended = 0
        for one in kept:
            # A pid may belong to somebody else by now; its start time tells.
            if _started(one["pid"]) == one["started"]:
                os.kill(one["pid"], signal.SIGTERM)
                ended += 1
        self.lab.down()
        if path.exists():
            # What the kept installation remembers goes with it: the next one begins anew.
            shutil.rmtree(self.directory)
            self.directory.mkdir()
        return ended

    def down(self, *, with_lab: bool = True) -> None:
        """End every process of this stage."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()
        self.server.stop()
        if with_lab:
            self.lab.down()
