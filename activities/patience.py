"""Waiting inside an activity: where its end would undo what is waited for, or a guest's outage ends with the wait.

Everywhere else Temporal asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from temporalio import activity

from whimbrel.errors import NotReady

T = TypeVar("T")
WATCH_S = 4.0
"""So long a thread stays with one wait."""
LATE = 0.05
"""What is waited for is seen at most so much later than it came, as a share of the wait."""
EVERY_S = (0.2, 2.0)
"""Between two looks, at least and at most."""
MARGIN_S = 0.2


def until_ready(call: Callable[[], T], patience_s: float, every_s: float) -> T:
    """What the call gives once the cloud has done it. Raises NotReady after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except NotReady:
            if time.monotonic() > deadline:
                raise
        time.sleep(every_s)


def watched(look: Callable[[], T]) -> T:
    """What ``look`` gives once it raises NotReady no more; often at first, and rarely when it has taken long.

    Raises its NotReady after ``WATCH_S`` (Temporal asks again at once), when the activity is cancelled, and before its
    schedule-to-close comes: the workflow is then told what was not there, instead of a timeout.
    """
    info = activity.info()
    began = time.monotonic()
    waited_before_s = max((datetime.now(UTC) - info.scheduled_time).total_seconds(), 0.0)
    limit = info.schedule_to_close_timeout or timedelta.max
    watch_s = min(WATCH_S, limit.total_seconds() - waited_before_s - MARGIN_S)
    while True:
        try:
            return look()
        except NotReady as error:
            spent_s = time.monotonic() - began
            every_s = min(max((waited_before_s + spent_s) * LATE, EVERY_S[0]), EVERY_S[1])
            if spent_s + every_s > watch_s or activity.is_cancelled():
                error.retry_after_s = every_s
                raise
        time.sleep(every_s)
