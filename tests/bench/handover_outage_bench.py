# ruff: noqa: T201 - a script whose output is its purpose
"""What a handover adds to a guest's own stop and boot: ``python -m tests.bench.handover_outage_bench [--rounds 3]``.

The named peer is the same guest stopped and started by hand in its own cloud, with libvirt alone. Both outages are read
from the guest's own records (each to 1 s) and taken in turns, so that both meet the same machine; what lies between
"the source is off" and "the target is on" is the report's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from temporalio.client import Client

from labs.demo.scene import demo_plan, make_guest, migrate
from labs.kvm import LabGuest
from labs.kvm.records import outage, parse_console
from labs.stage import CLOUD_NAMES, Stage
from whimbrel.runtime.exits import run_and_leave

WANTED_S = 2.0
"""More than stop and boot."""


@dataclass(frozen=True)
class Round:
    """Outages of one guest, in seconds."""

    by_hand_s: float
    handover_s: float
    between_s: float
    """Of the handover: from the source off to the target on."""


def by_hand(guest: LabGuest) -> float:
    """Stop and start it where it is; seconds from its last record to its next one."""
    boot = guest.boot_count()
    guest.shutdown("a")
    guest.start("a", wait=False)
    guest.wait_console(rf"WBREC1 kind=run boot={boot + 1} ", timeout_s=120)
    return outage(parse_console(guest.console_text()), boot=boot + 1).seconds


async def one(client: Client, stage: Stage, name: str) -> Round:
    """A guest on the shared pool, by hand and handed over. Raises RuntimeError when anything was lost or is left."""
    guest = await asyncio.to_thread(make_guest, stage, name, pool="shared")
    try:
        by_hand_s = await asyncio.to_thread(by_hand, guest)
        plan = demo_plan(name, "dual-attach", storage={"shared": "shared"})
        proof = await migrate(client, stage, guest, plan)
        taken = proof.report.status.outage
        if not proof.good or taken is None or taken.started_at is None or taken.stopped_at is None:
            raise RuntimeError(f"{name}: {proof}")
        return Round(by_hand_s, proof.outage_s, (taken.started_at - taken.stopped_at).total_seconds())
    finally:
        for cloud in CLOUD_NAMES:
            await asyncio.to_thread(guest.remove, cloud)


async def measure(directory: Path, rounds: int) -> list[Round]:
    """On a stage of its own, one guest after the other."""
    stage = Stage.at(directory)
    client = await stage.up()
    try:
        await asyncio.to_thread(stage.start_worker)
        found = []
        for number in range(rounds):
            load = os.getloadavg()[0]
            found.append(await one(client, stage, f"handed-{number}"))
            print(f"by hand {found[-1].by_hand_s:.1f} s, handover {found[-1].handover_s:.1f} s", end="")
            print(f", between off and on {found[-1].between_s:.2f} s, load {load:.1f}")
    finally:
        await asyncio.to_thread(stage.down)
    return found


async def main() -> int:
    """Run; 1 when the median handover adds more than is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="whimbrel-bench-"))
    try:
        found = await measure(directory, options.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    added_s = median(each.handover_s - each.by_hand_s for each in found)
    ratio = median(each.handover_s / each.by_hand_s for each in found)
    print(f"dual-attach outage, {len(found)} rounds, medians: {ratio:.2f} x stop and boot by hand,", end=" ")
    print(f"{added_s:+.1f} s (wanted: at most +{WANTED_S:.0f});", end=" ")
    print(f"between off and on {median(each.between_s for each in found):.2f} s")
    return 0 if added_s <= WANTED_S else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(main)
