"""A moment between a migration's precheck and its first act: nobody serves its acts until the test lets them go on.

Prechecks are on the data queue, what changes a cloud on the control queue: a worker process serves the one, and the
workflows' own tasks, which are on the other as well, are this process's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from temporalio.worker import Worker

from tests.e2e.installation import Installation
from tests.e2e.running import Running, told
from whimbrel.contracts.names import CONTROL_QUEUE
from whimbrel.model.progress import Phase
from whimbrel.runtime.sandbox import runner
from worker import WORKFLOWS

PATIENCE_S = 400.0


@contextmanager
def only_prechecks(installation: Installation) -> Iterator[None]:
    """Inside, migrations get as far as their precheck and wait; then a whole worker takes over."""
    while any(worker.alive for worker in installation.stage.workers):
        installation.kill_worker()
    installation.start_worker(WHIMBREL_QUEUES="data")
    deciding, run = installation.run(_decide(installation))
    try:
        yield
    finally:
        installation.run(deciding.shutdown())
        installation.run(asyncio.wait_for(run, 30))
        installation.kill_worker()
        installation.start_worker()


async def _decide(installation: Installation) -> tuple[Worker, asyncio.Task[None]]:
    deciding = Worker(
        installation.client,
        task_queue=CONTROL_QUEUE,
        workflows=WORKFLOWS,
        workflow_runner=runner(),
        max_cached_workflows=0,  # so that whoever comes next finds all tasks on the common queue
    )
    return deciding, asyncio.create_task(deciding.run())


def wait_prechecked(migrations: Sequence[Running]) -> None:
    """All have passed their precheck and wait for somebody who reads their source."""
    deadline = time.monotonic() + PATIENCE_S
    for running in migrations:
        while not any(pending.activity_type.name == "compute.inspect" for pending in running.pending()):
            now = running.status()
            assert now.phase in {Phase.PRECHECK, Phase.PREPARE}, told(now)
            assert time.monotonic() < deadline, told(now)
            time.sleep(0.2)
