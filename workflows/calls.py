"""Calling activities with the timeouts of the one table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
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
        retry_policy=used.retry,
        cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
    )


async def call(
    method: Callable[[Self, In], Out],
    argument: In,
    *,
    summary: str,
    queue: str = CONTROL_QUEUE,
    timing: Timing | None = None,
    schedule_to_close: timedelta | None = None,
) -> Out:
    """Run an activity to its end."""
    return await start(
        method, argument, summary=summary, queue=queue, timing=timing, schedule_to_close=schedule_to_close
    )
