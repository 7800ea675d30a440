"""One migration of a lab guest, watched, and what it proved."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowHandle

from labs.kvm import DiskSpec, GuestSpec, LabGuest
from labs.kvm.records import outage, parse_console, read_image
from labs.stage import CLOUD_NAMES, Stage
from whimbrel.contracts import verbs
from whimbrel.contracts.migration import MigrationInput
from whimbrel.contracts.names import CONTROL_QUEUE, DRILL, STATUS_QUERY, WORKFLOW_OF_MODE
from whimbrel.contracts.verbs import Verb
from whimbrel.model.naming import drill_id, workflow_id
from whimbrel.model.plan import Mode, VmPlan
from whimbrel.model.progress import MigrationReport, MigrationStatus, Phase

MIB = 1 << 20
DISK_BYTES = 512 * MIB
DATA_BYTES = 192 * MIB
DATA_OFFSET = 64 * MIB
"""Behind the record area and the hot area: written once, so that the baseline has something to carry."""
HOT_MIB = 16
SLOTS_IN_MOTION = 64
"""Records that a running guest may overwrite while its disk is read."""


@dataclass(frozen=True)
class Proof:
    """What one migration showed, read from the guest's own records, both disks and both clouds."""

    mode: str
    moved_bytes: int
    rounds: int
    outage_s: float
    outage_uncertainty_s: float
    forecast_s: float | None
    records_lost: int
    digests_equal: bool
    leftovers: int
    workflow: str
    report: MigrationReport

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return self.records_lost == 0 and self.digests_equal and self.leftovers == 0


def make_guest(stage: Stage, name: str, *, pool: str = "default", reads: int = 0) -> LabGuest:
    """A guest on cloud A with data on its disk in a pool; started, writing records and random blocks.

    ``reads``: blocks that it reads from all over the disk whenever it boots.
    """
    network = "lab" if stage.lab.has_network("a") and stage.lab.has_network("b") else None
    spec = GuestSpec(
        name=name,
        disks=(DiskSpec(size_bytes=DISK_BYTES),),
        network=network,
        rate=10,
        dirty_kib=512,
        hot_mib=HOT_MIB,
        reads=reads,
    )
    guest = stage.lab.create_guest(spec, "a", pool=pool)
    disk = guest.disk_paths("a")["vda"]
    fill(str(disk), DATA_OFFSET, DATA_BYTES)
    guest.start("a")
    return guest


def fill(disk: str, offset: int, length: int) -> None:
    """Write patterned data to a guest's disk before its first boot; every MiB differs from its neighbours."""
    commands: list[str] = []
    for index in range(length // MIB):
        commands += ["-c", f"write -q -P {index % 255 + 1} {offset + index * MIB} {MIB}"]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *commands, disk], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"qemu-io could not fill {disk}: {done.stderr.strip()}")


def demo_plan(vm: str, mode: Mode, **changes: Any) -> VmPlan:
    """A plan between the two lab clouds that waits at the confirm gate."""
    base: dict[str, Any] = {
        "plan": "demo",
        "vm": vm,
        "mode": mode,
        "source": CLOUD_NAMES["a"],
        "target": CLOUD_NAMES["b"],
        "networks": {"*": "lab", "user": "user"},
        "storage": {"*": "default"},
        "rounds": {
            "outage_budget_s": 15.0,
            "min_interval_s": 2.0,
            "max_interval_s": 10.0,
            # A lab guest: busybox, no services.
            "expected_stop_s": 2.0,
            "expected_boot_s": 7.0,
        },
        "stop": {"graceful_timeout_s": 30.0},
        "health": {"checks": [{"kind": "console", "pattern": "WBREC1 kind=run"}], "timeout_s": 120.0},
    }
    return VmPlan.model_validate({**base, **changes})


async def start(client: Client, plan: VmPlan) -> WorkflowHandle[Any, MigrationReport]:
    """Start a migration, as ``whimbrel migrate`` does."""
    return await client.start_workflow(
        WORKFLOW_OF_MODE[plan.mode],
        MigrationInput(plan=plan),
        id=workflow_id(plan.plan, plan.vm),
        task_queue=CONTROL_QUEUE,
        result_type=MigrationReport,
        static_summary=f"{plan.vm}: {plan.source} to {plan.target} ({plan.mode})",
    )


async def rehearse(client: Client, plan: VmPlan) -> MigrationReport:
    """Drill a plan, as ``whimbrel drill`` does; an error says why it did not pass."""
    report: MigrationReport = await client.execute_workflow(
        DRILL,
        MigrationInput(plan=plan),
        id=drill_id(plan.plan, plan.vm),
        task_queue=CONTROL_QUEUE,
        result_type=MigrationReport,
        static_summary=f"{plan.vm}: drill on {plan.target}",
    )
    if report.drill is None or not report.drill.passed or report.leftovers:
        raise RuntimeError(f"the drill did not pass: {report.reason}")
    return report


async def status_of(handle: WorkflowHandle[Any, MigrationReport]) -> MigrationStatus:
    """The status query."""
    found: MigrationStatus = await handle.query(STATUS_QUERY, result_type=MigrationStatus)
    return found


async def until(
    handle: WorkflowHandle[Any, MigrationReport],
    fits: Callable[[MigrationStatus], bool],
    *,
    timeout_s: float,
    on_status: Callable[[MigrationStatus], None] = lambda status: None,
) -> MigrationStatus:
    """Wait for a status; a migration that needs its operator or ends early is an error that says why."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = await status_of(handle)
        on_status(status)
        if fits(status):
            return status
        if status.phase in {Phase.ATTENTION, Phase.REFUSED, Phase.ROLLED_BACK, Phase.COMPLETED}:
            reason = status.trouble.message if status.trouble else (await handle.result()).reason
            raise RuntimeError(f"the migration is {status.phase}: {reason}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the migration is still in {status.phase} after {timeout_s:.0f} s")
        await asyncio.sleep(0.5)


async def migrate(
    client: Client,
    stage: Stage,
    guest: LabGuest,
    plan: VmPlan,
    *,
    on_status: Callable[[MigrationStatus], None] = lambda status: None,
    disturb: Callable[[WorkflowHandle[Any, MigrationReport]], Awaitable[None]] | None = None,
    label: str = "",
    patience_s: float = 240.0,
) -> Proof:
    """Migrate, prove, confirm; see ``Proof``."""
    boot_before = guest.boot_count()
    handle = await start(client, plan)
    if disturb is not None:
        await disturb(handle)
    await until(handle, lambda now: now.phase is Phase.CONFIRM, timeout_s=patience_s, on_status=on_status)
    await asyncio.to_thread(guest.wait_console, rf"WBREC1 kind=run boot={boot_before + 1} ", timeout_s=60)
    await handle.execute_update(verbs.CONFIRM, Verb(by="demo"))
    report = await handle.result()
    return await asyncio.to_thread(prove, stage, guest, plan, report, boot_before, label)


def prove(  # noqa: PLR0917 - what was there before, what came of it, and how to call it
    stage: Stage, guest: LabGuest, plan: VmPlan, report: MigrationReport, boot_before: int, label: str = ""
) -> Proof:
    """Hold the report against the guest's own records on both disks."""
    acknowledged = parse_console(guest.console_text())
    gap = outage(acknowledged, boot=boot_before + 1)
    held = read_image(guest.disk_paths("b")["vda"])
    # The target writes on while it is read: the oldest records of the ring may just be going.
    kept_from = held.last - held.slots + SLOTS_IN_MOTION
    lost = [record.n for record in held.lost(acknowledged) if record.n > kept_from]
    verify = report.status.verify
    figures = report.status.stream
    return Proof(
        mode=label or plan.mode,
        moved_bytes=report.bytes_sent + (figures.demand_bytes + figures.background_bytes if figures else 0),
        rounds=report.status.rounds_done,
        outage_s=gap.seconds,
        outage_uncertainty_s=gap.uncertainty_s,
        forecast_s=report.status.score.forecast_outage_s if report.status.score else None,
        records_lost=len(lost),
        digests_equal=bool(verify) and all(record.mismatches == 0 for record in verify),
        leftovers=len(report.leftovers),
        workflow=workflow_id(plan.plan, plan.vm),
        report=report,
    )
