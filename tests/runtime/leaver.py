"""A process that ends as its argument says; with ``worker`` after a real worker ran against TEMPORAL_ADDRESS."""

from __future__ import annotations

import asyncio
import sys

from temporalio import activity
from temporalio.worker import Worker

from whimbrel.runtime.connect import connect
from whimbrel.runtime.exits import run_and_leave

SECONDS = 0.2


@activity.defn(name="leaver.nothing")
async def nothing() -> None:
    """Keeps a worker polling."""


async def main() -> int:
    """End in the way that was asked for."""
    how = sys.argv[1]
    print("said before the end")  # noqa: T201 - read by the test
    if "worker" in sys.argv[2:]:
        client = await connect()
        async with Worker(client, task_queue="leaver", activities=[nothing]):
            await asyncio.sleep(SECONDS)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "system-exit":
        sys.exit(7)
    if how == "system-exit-text":
        sys.exit("no reason")
    if how == "error":
        raise RuntimeError("unforeseen")
    return int(how)


if __name__ == "__main__":
    run_and_leave(main)
