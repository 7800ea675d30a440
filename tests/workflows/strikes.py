"""Misfortune at the activities: one is held at its door, fails, or does its work and loses the answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

When = Literal["before", "after"]
HELD_AT_MOST_S = 240.0


@dataclass
class Strike:
    """What happens to activities of one type of the workflows whose id holds ``tag``."""

    tag: str
    activity: str
    when: When = "before"
    error: Callable[[], BaseException] | None = None
    times: int | None = 1
    gate: threading.Event | None = None
    """The activity waits for this before it goes on."""
    fits: Callable[[Any], bool] = lambda _: True
    """Asked with the activity's argument."""
    reached: threading.Event = field(default_factory=threading.Event)
    struck: int = 0

    def open(self) -> None:
        """Let the activity go on."""
        assert self.gate is not None
        self.gate.set()


_STRIKES: list[Strike] = []
_STARTED: list[tuple[str, str, int]] = []
_LOCK = threading.Lock()


def add(strike: Strike) -> Strike:
    """Let it wait for its activity."""
    with _LOCK:
        _STRIKES.append(strike)
    return strike


def clear(tag: str) -> None:
    """Forget the strikes of one test; what is held goes on."""
    with _LOCK:
        for strike in [each for each in _STRIKES if each.tag == tag]:
            _STRIKES.remove(strike)
            if strike.gate is not None:
                strike.gate.set()


def started(tag: str) -> list[str]:
    """Types of the activities begun so far for a test, in order, every attempt."""
    with _LOCK:
        return [name for workflow, name, _ in _STARTED if tag in workflow]


def _take(workflow: str, name: str, when: When, argument: Any) -> Strike | None:
    with _LOCK:
        for strike in _STRIKES:
            wanted = strike.tag in workflow and strike.activity in {"*", name} and strike.when == when
            if wanted and strike.times != 0 and strike.fits(argument):
                strike.times = None if strike.times is None else strike.times - 1
                strike.struck += 1
                return strike
    return None


async def _suffer(workflow: str, name: str, when: When, argument: Any) -> None:
    strike = _take(workflow, name, when, argument)
    if strike is None:
        return
    strike.reached.set()
    if strike.gate is not None:
        deadline = asyncio.get_running_loop().time() + HELD_AT_MOST_S
        while not strike.gate.is_set() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - threads
            await asyncio.sleep(0.02)
    if strike.error is not None:
        raise strike.error()


class _Inbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's own name
        info = activity.info()
        workflow = info.workflow_id or ""
        argument = input.args[0] if input.args else None
        with _LOCK:
            _STARTED.append((workflow, info.activity_type, info.attempt))
        await _suffer(workflow, info.activity_type, "before", argument)
        result = await super().execute_activity(input)
        await _suffer(workflow, info.activity_type, "after", argument)
        return result


class Misfortune(Interceptor):
    """Given to the workers of the tests, below the error translation."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the chain."""
        return _Inbound(super().intercept_activity(next))
