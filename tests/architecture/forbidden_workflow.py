"""A workflow that reads the clock: the sandbox must refuse it."""

from __future__ import annotations

import datetime

from temporalio import workflow


@workflow.defn(name="ReadsTheClock")
class ReadsTheClock:
    """Not deterministic."""

    @workflow.run
    async def run(self) -> str:
        """The wall clock."""
        return datetime.datetime.now(datetime.UTC).isoformat()
