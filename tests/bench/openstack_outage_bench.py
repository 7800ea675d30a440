# ruff: noqa: T201 - a script whose output is its purpose
"""Outage of ``incremental`` between OpenStack clouds: ``python -m tests.bench.openstack_outage_bench [--rounds 3]``.

It is held against what the same clouds need by hand: Nova stops a server of the same image, Nova boots one from a
volume and a port that are there already, and the last delta at the rate that the plan allows the copy. Wanted is at
most 1.1 of the sum. All three of a round are done one after the other, so that they meet the same load.
Needs the lab (``make lab-openstack``); WHIMBREL_OPENSTACK_ROOT names it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from temporalio.client import Client

from labs.openstack import CloudHandle, LabServer, OpenStackLab, boot
from labs.openstack_stage import OpenStackStage, name_in_plans
from tests.contract.openstack_harness import OpenStackHarness
from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import CONTROL_QUEUE, INCREMENTAL
from whimbrel.model.naming import workflow_id
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport
from whimbrel.runtime.exits import run_and_leave

TARGET_RATIO = 1.1
LINK_BYTES_PER_S = 50e6
DIRTY_KIB = 512
UP = r"WBREC1 kind=run"
PATIENCE_S = 500.0
POLL_S = 0.1


@dataclass(frozen=True)
class Round:
    """Seconds; the outage is the report's, from the request to stop to healthy."""

    stop_s: float
    boot_s: float
    delta_bytes: int
    parts_s: tuple[float, ...]
    """Of the outage: stop, last delta, rebuild and start, until healthy."""

    @property
    def by_hand_s(self) -> float:
        """What it could be at best."""
        return self.stop_s + self.boot_s + self.delta_bytes / LINK_BYTES_PER_S

    @property
    def outage_s(self) -> float:
        """What it was."""
        return sum(self.parts_s)


def timed(act: Callable[[], object], done: Callable[[], bool]) -> float:
    """Seconds from the request until what it asks for is seen."""
    began = time.monotonic()
    act()
    while not done():
        if time.monotonic() - began > PATIENCE_S:
            raise TimeoutError(f"not done within {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic() - began


def stop_by_hand(cloud: CloudHandle, number: int) -> float:
    """Nova's stop of a running guest."""
    server = boot(cloud, f"bench-{secrets.token_hex(3)}", number)
    try:
        server.wait_console(UP, timeout_s=240)
        with contextlib.closing(cloud.connect(member=True)) as connection:
            compute: Any = connection.compute
            return timed(
                lambda: compute.stop_server(server.id), lambda: compute.get_server(server.id).status == "SHUTOFF"
            )
    finally:
        server.remove()


def boot_by_hand(cloud: CloudHandle, number: int) -> float:
    """Nova makes a server on a volume and a port; until the guest's first record."""
    first = boot(cloud, f"bench-{secrets.token_hex(3)}", number)
    now = first
    try:
        first.wait_console(UP, timeout_s=240)
        with contextlib.closing(cloud.connect(member=True)) as connection:
            compute: Any = connection.compute
            compute.delete_server(first.id)
            compute.wait_for_delete(compute.get_server(first.id), interval=0.5, wait=120)
            disk = {"uuid": first.volume_id, "source_type": "volume", "destination_type": "volume", "boot_index": 0}
            flavor = compute.find_flavor("lab.small", ignore_missing=False).id
            began = time.monotonic()
            made = compute.create_server(
                name="bench-again",
                flavor_id=flavor,
                networks=[{"port": first.port_id}],
                block_device_mapping_v2=[disk],
            )
            now = replace(first, id=made.id)
            now.wait_console(UP, timeout_s=240)
            return time.monotonic() - began
    finally:
        now.remove()


def plan_of(vm: str) -> VmPlan:
    """Cutover as soon as two rounds say what to expect; confirmed by itself."""
    return VmPlan.model_validate(
        {
            "plan": "outage",
            "vm": vm,
            "mode": "incremental",
            "source": name_in_plans("a"),
            "target": name_in_plans("b"),
            "networks": {"*": CloudHandle.network},
            "storage": {"*": "rbd-b"},
            "disk_format": "raw",
            "rounds": {"outage_budget_s": 300.0, "min_interval_s": 1.0, "max_interval_s": 5.0},
            "stop": {"graceful_timeout_s": 60.0},
            "bandwidth_bytes_per_s": LINK_BYTES_PER_S,
            "health": {"checks": [{"kind": "console", "pattern": UP}], "timeout_s": 240.0},
            "confirm": {"after_s": 0.01, "then": "auto_confirm"},
        }
    )


async def migrate(client: Client, server: LabServer, name: str) -> MigrationReport:
    """The whole migration of a guest that writes."""
    server.wait_console(UP, timeout_s=240)
    server.command(f"dirty-kib {DIRTY_KIB}")
    report: MigrationReport = await asyncio.wait_for(
        client.execute_workflow(
            INCREMENTAL,
            MigrationInput(plan=plan_of(name)),
            id=workflow_id("outage", name),
            task_queue=CONTROL_QUEUE,
            result_type=MigrationReport,
        ),
        PATIENCE_S,
    )
    if report.outcome != "completed" or report.leftovers:
        raise RuntimeError(f"{name}: {report.outcome} {report.reason} {report.leftovers}")
    return report


async def measure(lab: OpenStackLab, client: Client, number: int) -> Round:
    """By hand, then by a migration."""
    stop_s = await asyncio.to_thread(stop_by_hand, lab.cloud("a"), number)
    boot_s = await asyncio.to_thread(boot_by_hand, lab.cloud("b"), number)
    name = f"bench-{secrets.token_hex(3)}"
    report = await migrate(client, await asyncio.to_thread(boot, lab.cloud("a"), name, number), name)
    outage = report.status.outage
    assert outage is not None
    moments = (
        outage.stop_requested_at, outage.stopped_at, outage.final_delta_done_at, outage.started_at, outage.healthy_at
    )  # fmt: skip
    known = [moment for moment in moments if moment is not None]
    assert len(known) == len(moments)
    parts_s = tuple((later - earlier).total_seconds() for earlier, later in itertools.pairwise(known))
    return Round(stop_s, boot_s, report.status.rounds[-1].sent_bytes, parts_s)


async def bench(lab: OpenStackLab, directory: Path, rounds: int) -> float:
    """Print each round; the median ratio (guests that have arrived run on, so that later rounds meet more load)."""
    sides = [OpenStackHarness(lab.cloud(cloud)) for cloud in ("a", "b")]
    stage = OpenStackStage.on(directory, lab, None)
    client = await stage.up()
    done: list[Round] = []
    try:
        await asyncio.to_thread(stage.start_worker)
        for index in range(rounds):
            one = await measure(lab, client, 70 + index)
            done.append(one)
            parts = " + ".join(f"{part_s:.1f}" for part_s in one.parts_s)
            print(f"by hand: stop {one.stop_s:.1f} s, boot {one.boot_s:.1f} s;", end=" ")
            print(f"delta {one.delta_bytes / 1e6:.1f} MB at {LINK_BYTES_PER_S / 1e6:.0f} MB/s;", end=" ")
            print(f"outage {one.outage_s:.1f} s ({parts}: stop, delta, rebuild and start, healthy);", end=" ")
            print(f"{one.outage_s / one.by_hand_s:.2f} of {one.by_hand_s:.1f} s, load {os.getloadavg()[0]:.1f}")
    finally:
        await asyncio.to_thread(stage.down)
        for side in reversed(sides):
            await asyncio.to_thread(side.end)
    ratio = statistics.median(one.outage_s / one.by_hand_s for one in done)
    print(
        f"outage against stop + boot + delta / link: {ratio:.2f} (median of {rounds}; wanted: {TARGET_RATIO});", end=" "
    )
    print(f"{os.cpu_count()} cores")
    return ratio


async def main() -> int:
    """Run once; 1 when the outage is longer than wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lab = OpenStackLab(Path(os.environ.get("WHIMBREL_OPENSTACK_ROOT", ".state/lab-openstack")), ("a", "b"))
    directory = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
    try:
        return 0 if await bench(lab, directory, options.rounds) <= TARGET_RATIO else 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(main)
