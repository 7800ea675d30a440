"""The stage as a synchronous object: tests mix blocking calls to the lab with calls to Temporal."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from temporalio.client import Client, WorkflowHandle

from labs.stage import Stage, WorkerProcess
from whimbrel.contracts.migration import DrillInput, MigrationInput
from whimbrel.contracts.names import CONTROL_QUEUE, DRILL, WORKFLOW_OF_MODE
from whimbrel.model.naming import drill_id, workflow_id
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport

T = TypeVar("T")


@contextmanager
def installed(stage: Stage) -> Iterator[Installation]:
    """An installation for as long as tests need it."""
    made = Installation(stage)
    try:
        yield made
    finally:
        made.close()


def short_name(request: pytest.FixtureRequest, most: int = 20) -> str:
    """The test's name, as guests and plans can be named."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))
    return words.strip("-")[:most].strip("-")


class Installation:
    """Temporal, the clouds, and at least one worker; an event loop in a thread of its own drives the client."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="e2e-loop", daemon=True)
        self._thread.start()
        self.client: Client = self.run(stage.up(), timeout_s=180)

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 60) -> T:
        """Drive a coroutine to its end from this thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        """End all processes but those of the lab, which is shared."""
        self.stage.down(with_lab=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # -- processes that tests kill ------------------------------------------------------------------------------

    def make_whole(self) -> None:
        """Bring back what an earlier test left dead: server, daemons, one worker."""
        if self.stage.server.process is None or self.stage.server.process.poll() is not None:
            self.start_server()
        self.stage.heal()
        if not any(worker.alive for worker in self.stage.workers):
            self.start_worker()

    @property
    def worker(self) -> WorkerProcess:
        """The newest worker that runs."""
        return next(worker for worker in reversed(self.stage.workers) if worker.alive)

    def start_worker(self, **environment: str) -> WorkerProcess:
        """One more worker process."""
        return self.stage.start_worker(**environment)

    def kill_worker(self) -> WorkerProcess:
        """SIGKILL to the newest worker; it is returned for its log."""
        worker = self.worker
        worker.kill()
        return worker

    def replace_worker(self) -> None:
        """Kill the worker as a crash would, and start another as its supervisor would."""
        self.kill_worker()
        self.start_worker()

    def kill_server(self) -> None:
        """SIGKILL to the Temporal server."""
        self.stage.server.kill()

    def start_server(self) -> None:
        """Start the Temporal server on the same database file; returns when it serves."""
        self.stage.server.start()
        self.run(self.stage.server.ready(), timeout_s=90)

    def bounce_libvirtd(self, cloud: str, *, down_s: float = 0.0) -> None:
        """Kill a cloud's daemon, leave it dead for a while, start it again."""
        self.stage.lab.kill_libvirtd(cloud)
        time.sleep(down_s)
        self.stage.lab.start_libvirtd(cloud)

    # -- migrations ---------------------------------------------------------------------------------------------

    def start(self, plan: VmPlan) -> WorkflowHandle[Any, MigrationReport]:
        """Start a migration as ``whimbrel migrate`` does."""
        return self.run(
            self.client.start_workflow(
                WORKFLOW_OF_MODE[plan.mode],
                MigrationInput(plan=plan),
                id=workflow_id(plan.plan, plan.vm),
                task_queue=CONTROL_QUEUE,
                result_type=MigrationReport,
            )
        )

    def rehearse(self, plan: VmPlan, *, from_copy: bool = False) -> WorkflowHandle[Any, MigrationReport]:
        """Start a plan's drill as ``whimbrel drill`` does."""
        return self.run(
            self.client.start_workflow(
                DRILL,
                DrillInput(plan=plan, from_copy=from_copy),
                id=drill_id(plan.plan, plan.vm),
                task_queue=CONTROL_QUEUE,
                result_type=MigrationReport,
            )
        )
