"""Runs a command's conversation with Temporal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from whimbrel.cli.fault import no_worker
from whimbrel.errors import Unavailable
from whimbrel.runtime.connect import connect

T = TypeVar("T")

RPC_TIMEOUT = timedelta(seconds=15)
CONNECT_TIMEOUT_S = 15.0


def converse(body: Callable[[Client], Awaitable[T]]) -> T:
    """Connect, run ``body`` and give its answer. Raises Unavailable and whatever ``body`` raises."""

    async def main() -> T:
        try:
            client = await asyncio.wait_for(connect(), CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise Unavailable(
                f"Temporal did not answer within {CONNECT_TIMEOUT_S:.0f} s", action="check TEMPORAL_ADDRESS"
            ) from error
        return await body(client)

    return asyncio.run(main())


async def pollers(client: Client, queue: str, *, workflows: bool = False) -> list[str]:
    """Identities of the workers that polled a task queue in the last minutes (Temporal forgets them after five)."""
    kind = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW if workflows else TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind),
        timeout=RPC_TIMEOUT,
    )
    return sorted({poller.identity for poller in answer.pollers})


async def need_worker(client: Client, queue: str) -> None:
    """Raises Fault when nobody would take a workflow from this queue."""
    if not await pollers(client, queue, workflows=True):
        raise no_worker(queue)
