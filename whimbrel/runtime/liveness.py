"""Heartbeats for calls that are too short to have progress of their own, so that a dead worker is noticed soon.

Without them a call whose worker was killed is only given up at its start-to-close limit: two minutes during which, at
the cutover, the guest is down.
"""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ActivityOutboundInterceptor, ExecuteActivityInput, Interceptor

from whimbrel.contracts.timeouts import TABLE

BEAT_S = 2.0


class _Inbound(ActivityInboundInterceptor):
    _outbound: ActivityOutboundInterceptor

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        self._outbound = outbound
        super().init(outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's own name
        info = activity.info()
        row = TABLE.get(info.activity_type)
        if info.heartbeat_timeout is None or row is None or row.own_beats:
            return await super().execute_activity(input)
        beats = asyncio.create_task(self._beat())
        try:
            return await super().execute_activity(input)
        finally:
            beats.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._outbound.heartbeat()


class Liveness(Interceptor):
    """Give this to every worker, with a heartbeat throttle well under ``CALL_HEARTBEAT``."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the chain."""
        return _Inbound(super().intercept_activity(next))
