"""Calling activities with the timeouts of the one table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType, ActivityHandle

from whimbrel.contracts.names import CONTROL_QUEUE
from whimbrel.contracts.timeouts import TABLE, Timing

Self = TypeVar("Self")
In = TypeVar("In")
Out = TypeVar("Out")


def activity_name(method: Callable[..., Any]) -> str:
    """The wire name that ``@activity.defn`` gave the method."""
    name = getattr(method, "__temporal_activity_definition").name
    return str(name)


def start(
    method: Callable[[Self, In], Out],
    argument: In,
    *,
    summary: str,
    queue: str = CONTROL_QUEUE,
    timing: Timing | None = None,
    schedule_to_close: timedelta | None = None,
    schedule_to_start: timedelta | None = None,
) -> ActivityHandle[Out]:
    """Start an activity; cancelling it waits until it has really ended, so that nothing races with an undo."""
    used = timing or TABLE[activity_name(method)]
    return workflow.start_activity_method(
        method,
        argument,
        task_queue=queue,
        start_to_close_timeout=used.start_to_close,
        heartbeat_timeout=used.heartbeat,
        schedule_to_close_timeout=schedule_to_close or used.schedule_to_close,
        schedule_to_start_timeout=schedule_to_start,
        retry_policy=used.retry,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
    )


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was asked to stop while it awaited an activity.

    An activity that does not hear of its cancellation ends with its own result or error, and asyncio takes that for
    the answer: without this, a rollback asked for during a cloud call would be forgotten.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def call(
    method: Callable[[Self, In], Out],
    argument: In,
    *,
    summary: str,
    queue: str = CONTROL_QUEUE,
    timing: Timing | None = None,
    schedule_to_close: timedelta | None = None,
) -> Out:
    """Run an activity to its end. Raises CancelledError when we were cancelled meanwhile, however it ended."""
    try:
        result = await start(
            method, argument, summary=summary, queue=queue, timing=timing, schedule_to_close=schedule_to_close
        )
    except ActivityError:
        raise_if_cancelled()
        raise
    raise_if_cancelled()
    return result


async def all_of(works: Iterable[Coroutine[Any, Any, Out]]) -> list[Out]:
    """Do them at once; the first failure cancels the others and is raised when all have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
