"""A Temporal dev server with stand-in workflows, and the command line called in this process or as a program."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from labs.ports import lend_port
from tests.cli import standin
from whimbrel.cli.app import run
from whimbrel.contracts.names import CONTROL_QUEUE, SEARCH_ATTRIBUTES, data_queue
from whimbrel.runtime.connect import DATA_CONVERTER
from whimbrel.runtime.devserver import temporal_binary

T = TypeVar("T")

# Whoever runs the tests in the background may have SIGINT ignored, and programs started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[2]
EMPTY_NAMESPACE = "nobody-works-here"
_KEYS: dict[str, Callable[[str], SearchAttributeKey[Any]]] = {
    "Keyword": SearchAttributeKey.for_keyword,
    "Int": SearchAttributeKey.for_int,
    "Double": SearchAttributeKey.for_float,
    "Bool": SearchAttributeKey.for_bool,
}


class Server:
    """Server and worker on an event loop in a thread of their own, because the command line runs its own loops."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.client: Client
        self.address = ""
        self._stop: asyncio.Event
        self._done: concurrent.futures.Future[None]

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def start(self) -> None:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._done = asyncio.run_coroutine_threadsafe(self._serve(started), self.loop)
        started.result(90)

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        self._stop = asyncio.Event()
        try:
            async with await WorkflowEnvironment.start_local(
                data_converter=DATA_CONVERTER,
                search_attributes=[_KEYS[kind](name) for name, kind in SEARCH_ATTRIBUTES.items()],
                port=lend_port(),
                dev_server_existing_path=temporal_binary(),
                dev_server_extra_args=["--namespace", EMPTY_NAMESPACE],
                dev_server_log_level="error",
            ) as env:
                self.client = env.client
                self.address = env.client.service_client.config.target_host
                runner = UnsandboxedWorkflowRunner()
                activities = [standin.copy_disk, standin.ensure_volume]
                async with (
                    Worker(
                        env.client, task_queue=CONTROL_QUEUE, workflows=standin.WORKFLOWS, activities=activities,
                        workflow_runner=runner,
                    ),
                    Worker(env.client, task_queue=data_queue("default"), activities=activities),
                ):  # fmt: skip
                    started.set_result(None)
                    await self._stop.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self._done.result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    served = Server()
    served.start()
    yield served
    served.stop()


@dataclass
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The result of ``--json``; fails when there is more than the one object."""
        answer = json.loads(self.out)
        assert answer["version"] == 1
        return answer["result"]

    @property
    def error(self) -> dict[str, Any]:
        """The error of ``--json``."""
        return dict(json.loads(self.out)["error"])


def call(*words: object) -> Ran:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    return Ran(int(code), out.getvalue(), err.getvalue())


@dataclass
class Desk:
    """An operator's desk: an empty directory, the environment, the command line, and plans of unique names."""

    directory: Path
    server: Server
    environ: dict[str, str]

    def __call__(self, *words: object) -> Ran:
        return call(*words)

    def program(self, *words: object, **changes: str) -> Ran:
        """The command line as ``python starter.py``."""
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "starter.py"), *(str(word) for word in words)],
            capture_output=True, text=True, timeout=90, check=False, cwd=self.directory,
            env={**os.environ, **self.environ, **changes},
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    def plan(self, *vms: str, mode: str = "incremental") -> Path:
        """A plan file for these VMs; its stem is the plan's name."""
        name = f"plan-{uuid.uuid4().hex[:10]}"
        path = self.directory / f"{name}.yaml"
        path.write_text(
            f'version: 1\nname: {name}\nsource: kvm-a\ntarget: kvm-b\nnetworks: {{"*": lan}}\nstorage: {{"*": fast}}\n'
            f"defaults: {{mode: {mode}}}\nvms:\n" + "".join(f"  - name: {vm}\n" for vm in vms)
        )
        return path

    def phase_of(self, plan: Path, vm: str) -> str:
        """The phase that the workflow tells."""
        handle = self.server.client.get_workflow_handle(f"vm/{plan.stem}/{vm}")
        return str(self.server.call(handle.query("status"))["phase"])


@pytest.fixture
def desk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    environ = {
        "TEMPORAL_ADDRESS": server.address,
        "XDG_CONFIG_HOME": str(tmp_path / "none"),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    for name in ("TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE", "WHIMBREL_CONFIG", "WHIMBREL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, server, environ)
