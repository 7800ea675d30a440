"""A wait that an outage ends with: seen soon after it came, and given back to Temporal in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from temporalio import activity
from temporalio.testing import ActivityEnvironment

from activities import patience
from whimbrel.errors import Conflict, NotReady, WhimbrelError


class Wait:
    """Something that comes at the n-th look."""

    def __init__(self, comes_at: int, otherwise: Callable[[], WhimbrelError] = lambda: NotReady("not yet")) -> None:
        self.comes_at = comes_at
        self.otherwise = otherwise
        self.looks = 0

    def __call__(self) -> str:
        self.looks += 1
        if self.looks < self.comes_at:
            raise self.otherwise()
        return "there"


def _since(seconds: float, *, limit_s: float | None = None) -> ActivityEnvironment:
    """An attempt of an activity that was scheduled so long ago."""
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(
        environment.info,
        scheduled_time=datetime.now(UTC) - timedelta(seconds=seconds),
        schedule_to_close_timeout=timedelta(seconds=limit_s) if limit_s is not None else None,
    )
    return environment


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between looks; nobody really sleeps."""
    found: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        found.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("activities.patience.time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    return found


def test_what_comes_soon_is_waited_for(slept: list[float]) -> None:
    wait = Wait(4)
    assert _since(0).run(patience.watched, wait) == "there"
    assert (wait.looks, slept) == (4, [patience.EVERY_S[0]] * 3)


def test_what_does_not_come_is_temporals(slept: list[float]) -> None:
    """It is asked again as soon as a look would have been due."""
    with pytest.raises(NotReady) as caught:
        _since(0).run(patience.watched, Wait(1000))
    assert caught.value.retry_after_s == patience.EVERY_S[0]
    assert 0 < sum(slept) <= patience.WATCH_S


@pytest.mark.parametrize(("waited_s", "every_s"), [(10.0, 0.5), (30.0, 1.5), (600.0, 2.0)])
def test_the_longer_the_rarer(slept: list[float], waited_s: float, every_s: float) -> None:
    assert _since(waited_s).run(patience.watched, Wait(2)) == "there"
    assert slept == [pytest.approx(every_s, abs=0.1)]


def test_before_the_time_is_up_the_reason_is_told(slept: list[float]) -> None:
    """A timeout of Temporal would say nothing of what is missing."""
    wait = Wait(1000)
    with pytest.raises(NotReady, match="not yet"):
        _since(59.9, limit_s=60.0).run(patience.watched, wait)
    assert (wait.looks, slept) == (1, [])


def test_a_cancelled_activity_waits_no_longer(slept: list[float]) -> None:
    environment = _since(0)
    wait = Wait(1000)

    def look() -> str:
        if wait.looks == 2:
            environment.cancel()
        return wait()

    @activity.defn(no_thread_cancel_exception=True)
    def waiting() -> str:
        return patience.watched(look)

    with pytest.raises(NotReady):
        environment.run(waiting)
    assert wait.looks == 3


def test_another_error_is_not_waited_out(slept: list[float]) -> None:
    wait = Wait(1000, lambda: Conflict("it never will"))
    with pytest.raises(Conflict):
        _since(0).run(patience.watched, wait)
    assert wait.looks == 1
