# ruff: noqa: T201 - a script whose output is its purpose
"""Running guests a minute between two OpenStack clouds: ``python -m tests.bench.openstack_handover_bench [--vms 6]``.

Guests write records on the lab's shared pool. Each migration is a whole one: prechecks, the guest's own shutdown, the
handover, a server made by Nova, the guest's boot and first record, confirmation. Two workers, which have made
prechecks before: their first connections are not part of the figure.
Needs the lab (``make lab-openstack``); WHIMBREL_OPENSTACK_ROOT names it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labs.openstack import LabServer, OpenStackLab, boot
from labs.openstack_stage import OpenStackStage
from tests.bench.dual_attach_bench import activities_of
from tests.contract.openstack_harness import OpenStackHarness
from tests.e2e_handover.plans import plan_of
from whimbrel.contracts.migration import MigrationInput, PrecheckInput, PrecheckReport
from whimbrel.contracts.names import CONTROL_QUEUE, DUAL_ATTACH, PRECHECK
from whimbrel.model.naming import workflow_id
from whimbrel.model.progress import MigrationReport
from whimbrel.runtime.exits import run_and_leave

TARGET_PER_MINUTE = 4.0
PATIENCE_S = 400.0
WARM_ROUNDS = 2


async def measure(lab: OpenStackLab, directory: Path, vms: int, at_once: int) -> float:
    """Boot the guests, hand all over, print where time went; VMs a minute."""
    sides = [OpenStackHarness(lab.cloud(cloud)) for cloud in ("a", "b")]
    stage = OpenStackStage.on(directory, lab, None)
    client = await stage.up()
    try:
        names = [f"bench-{secrets.token_hex(3)}" for _ in range(vms)]

        def ready(numbered: tuple[int, str]) -> LabServer:
            server = boot(lab.cloud("a"), numbered[1], 60 + numbered[0], shared=True)
            server.wait_console(r"WBREC1 kind=run", timeout_s=240)
            return server

        with ThreadPoolExecutor(2) as pool:
            await asyncio.to_thread(lambda: list(pool.map(ready, enumerate(names))))
        for _ in range(2):
            await asyncio.to_thread(stage.start_worker)
        for round_ in range(WARM_ROUNDS):  # workers that have connected before, as in the middle of a wave
            await asyncio.gather(
                *(
                    client.execute_workflow(
                        PRECHECK,
                        PrecheckInput(plan=plan_of(name)),
                        id=f"warm-{round_}-{name}",
                        task_queue=CONTROL_QUEUE,
                        result_type=PrecheckReport,
                    )
                    for name in names
                )
            )
        gate = asyncio.Semaphore(at_once)

        async def one(name: str) -> MigrationReport:
            async with gate:
                handle = await client.start_workflow(
                    DUAL_ATTACH,
                    MigrationInput(plan=plan_of(name, confirm={"after_s": 0.01, "then": "auto_confirm"})),
                    id=workflow_id("handover", name),
                    task_queue=CONTROL_QUEUE,
                    result_type=MigrationReport,
                )
                report: MigrationReport = await asyncio.wait_for(handle.result(), PATIENCE_S)
                if report.outcome != "completed" or report.leftovers:
                    raise RuntimeError(f"{name}: {report.outcome} {report.reason} {report.leftovers}")
                history = await handle.fetch_history()
                for kind, _, worked_s in activities_of(list(history.events)):
                    spent[kind] = spent.get(kind, 0.0) + worked_s
                return report

        spent: dict[str, float] = {}
        load, began = os.getloadavg()[0], time.monotonic()
        reports = await asyncio.gather(*(one(name) for name in names))
        elapsed_s = time.monotonic() - began
    finally:
        await asyncio.to_thread(stage.down)
        for side in reversed(sides):
            await asyncio.to_thread(side.end)
    outages = sorted(
        (report.status.outage.healthy_at - report.status.outage.stop_requested_at).total_seconds()
        for report in reports
        if report.status.outage is not None and report.status.outage.healthy_at is not None
    )
    per_minute = vms / elapsed_s * 60
    print(f"{vms} running guests, {at_once} at once, two workers: {elapsed_s:.1f} s,", end=" ")
    print(f"{per_minute:.1f} VMs a minute (wanted: {TARGET_PER_MINUTE:.0f}); {os.cpu_count()} cores,", end=" ")
    print(f"load {load:.1f} to {os.getloadavg()[0]:.1f}")
    print(f"from the request to stop to healthy: {outages[0]:.1f} to {outages[-1]:.1f} s")
    for kind, worked_s in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{kind:28}{worked_s / vms:8.2f} s a VM")
    return per_minute


async def main() -> int:
    """Run once; 1 when it is slower than wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=3)
    options = parser.parse_args()
    lab = OpenStackLab(Path(os.environ.get("WHIMBREL_OPENSTACK_ROOT", ".state/lab-openstack")), ("a", "b"))
    directory = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
    try:
        return 0 if await measure(lab, directory, options.vms, options.at_once) >= TARGET_PER_MINUTE else 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(main)
