# ruff: noqa: T201 - a script whose output is its purpose
"""VMs a minute that one worker hands over: ``python -m tests.bench.dual_attach_bench [--vms 30] [--at-once 8]``.

Stopped VMs without content on the lab's shared pool, so that no guest is waited for: what is measured is the control
plane. Every migration is a whole one: prechecks, note on the storage, release, adoption, definition, checks, commit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle

from labs.kvm import DiskSpec, GuestSpec
from labs.stage import CLOUD_NAMES, Stage
from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import CONTROL_QUEUE, DUAL_ATTACH
from whimbrel.model.naming import workflow_id
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport
from whimbrel.runtime.exits import run_and_leave

TARGET_PER_MINUTE = 20
PATIENCE_S = 120.0
"""A migration that is held would never end."""


def plan_of(vm: str) -> VmPlan:
    """A plan that is confirmed by its timer, at once."""
    return VmPlan.model_validate(
        {
            "plan": "bench",
            "vm": vm,
            "mode": "dual-attach",
            "source": CLOUD_NAMES["a"],
            "target": CLOUD_NAMES["b"],
            "networks": {"*": "lab", "user": "user"},
            "storage": {"shared": "shared"},
            "confirm": {"after_s": 0.01, "then": "auto_confirm"},
        }
    )


async def hand_over(client: Client, vm: str) -> tuple[MigrationReport, WorkflowHandle[Any, MigrationReport]]:
    """One migration, to its end. Raises RuntimeError when it did not complete, TimeoutError."""
    handle: WorkflowHandle[Any, MigrationReport] = await client.start_workflow(
        DUAL_ATTACH,
        MigrationInput(plan=plan_of(vm)),
        id=workflow_id("bench", vm),
        task_queue=CONTROL_QUEUE,
        result_type=MigrationReport,
    )
    report = await asyncio.wait_for(handle.result(), PATIENCE_S)
    if report.outcome != "completed" or report.leftovers:
        raise RuntimeError(f"{vm}: {report.outcome} {report.reason} {report.leftovers}")
    return report, handle


def activities_of(events: list[HistoryEvent]) -> Iterator[tuple[str, float, float]]:
    """(type, seconds in the queue, seconds of work) of each activity."""
    by_id = {event.event_id: event for event in events}
    for event in events:
        if event.HasField("activity_task_completed_event_attributes"):
            done = event.activity_task_completed_event_attributes
            scheduled, started = by_id[done.scheduled_event_id], by_id[done.started_event_id]
            name = scheduled.activity_task_scheduled_event_attributes.activity_type.name
            moments = [one.event_time.ToNanoseconds() / 1e9 for one in (scheduled, started, event)]
            yield name, moments[1] - moments[0], moments[2] - moments[1]


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Make the VMs, hand all over, a few at once, and add up where time went."""
    stage = Stage.at(directory)
    client = await stage.up()
    try:
        names = [f"bench-{number:03d}" for number in range(options.vms)]
        for name in names:
            spec = GuestSpec(name, disks=(DiskSpec(size_bytes=16 << 20),))
            await asyncio.to_thread(stage.lab.create_guest, spec, "a", pool="shared")
        await asyncio.to_thread(stage.start_worker)
        gate = asyncio.Semaphore(options.at_once)

        async def one(name: str) -> WorkflowHandle[Any, MigrationReport]:
            async with gate:
                return (await hand_over(client, name))[1]

        load, began = os.getloadavg()[0], time.monotonic()
        handles = await asyncio.gather(*(one(name) for name in names))
        elapsed_s = time.monotonic() - began
        spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for handle in handles:
            for name, queued_s, worked_s in activities_of(list((await handle.fetch_history()).events)):
                spent[name].append((queued_s, worked_s))
    finally:
        await asyncio.to_thread(stage.down)
    return {
        "vms": options.vms,
        "at_once": options.at_once,
        "elapsed_s": elapsed_s,
        "per_minute": options.vms / elapsed_s * 60,
        "load": [load, os.getloadavg()[0]],
        "activities": {
            name: {
                "calls": len(each),
                "queued_s": sum(queued for queued, _ in each) / options.vms,
                "worked_s": sum(worked for _, worked in each) / options.vms,
            }
            for name, each in spent.items()
        },
    }


def show(found: dict[str, Any]) -> None:
    """The figures as a table, the largest first."""
    print(
        f"dual-attach: {found['vms']} stopped VMs, {found['at_once']} at once, one worker: {found['elapsed_s']:.1f} s, "
        f"{found['per_minute']:.0f} VMs a minute (wanted: {TARGET_PER_MINUTE}); {os.cpu_count()} cores, "
        f"load {found['load'][0]:.1f} to {found['load'][1]:.1f}"
    )
    print(f"{'seconds per VM':28}{'calls':>6}{'work':>8}{'queue':>8}")
    for name, spent in sorted(found["activities"].items(), key=lambda item: -float(item[1]["worked_s"])):
        print(f"{name:28}{spent['calls']:6}{spent['worked_s']:8.3f}{spent['queued_s']:8.3f}")


async def main() -> int:
    """Run once; 1 when it is slower than wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
    try:
        found = await measure(options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if found["per_minute"] >= TARGET_PER_MINUTE else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(main)
