"""Calls beat while they run; copies, which tell their progress, are left alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio import activity
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ActivityOutboundInterceptor, ExecuteActivityInput

from whimbrel.contracts.timeouts import CALL_HEARTBEAT, TABLE
from whimbrel.runtime import liveness
from whimbrel.runtime.liveness import Liveness


class _Counting(ActivityOutboundInterceptor):
    def __init__(self) -> None:
        self.beats = 0

    def heartbeat(self, *details: Any) -> None:
        assert details == ()
        self.beats += 1

    def info(self) -> activity.Info:
        raise NotImplementedError


class _Slow(ActivityInboundInterceptor):
    def __init__(self, fails: bool, counting: _Counting, beats: int) -> None:  # no next: this is the end of the chain
        self._fails = fails
        self._counting = counting
        self._beats = beats

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        del outbound

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's own name
        async with asyncio.timeout(60):
            while self._counting.beats < self._beats:  # noqa: ASYNC110 - the beat is a task beside this one
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        if self._fails:
            raise ValueError("no")
        return "done"


def _beats(
    kind: str, heartbeat: timedelta | None, monkeypatch: pytest.MonkeyPatch, *, wanted: int = 0, fails: bool = False
) -> int:
    """How often it beats in a call that lasts until it has beaten as often as wanted, and a little longer."""
    monkeypatch.setattr(liveness, "BEAT_S", 0.02)
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, activity_type=kind, heartbeat_timeout=heartbeat)
    counting = _Counting()
    chain = Liveness().intercept_activity(_Slow(fails, counting, wanted))
    chain.init(counting)

    async def body() -> None:
        given = cast(ExecuteActivityInput, None)
        if fails:
            with pytest.raises(ValueError, match="no"):
                await chain.execute_activity(given)
        else:
            assert await chain.execute_activity(given) == "done"
        at_the_end = counting.beats
        await asyncio.sleep(0.1)
        assert counting.beats == at_the_end, "it beats after its end"

    asyncio.run(environment.run(body))
    return counting.beats


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_beats_until_it_ends(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    assert _beats("compute.ensure_vm", CALL_HEARTBEAT, monkeypatch, wanted=2, fails=fails) >= 2


def test_a_copy_beats_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _beats("copy.disk", CALL_HEARTBEAT, monkeypatch) == 0


def test_nobody_beats_who_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _beats("compute.wait_off", None, monkeypatch) == 0


@pytest.mark.parametrize("kind", sorted(TABLE))
def test_a_dead_worker_is_noticed_within_half_a_minute(kind: str) -> None:
    row = TABLE[kind]
    limit = row.heartbeat or row.start_to_close
    assert limit <= timedelta(seconds=30)
    assert row.heartbeat is None or row.heartbeat >= 5 * timedelta(seconds=liveness.BEAT_S)
