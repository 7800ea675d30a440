"""Workflows with the names, queries and updates of ours that only pretend: what the command line talks to in its tests.

The VM's name decides what happens: ``refused-*`` is refused by the precheck, ``broken-*`` fails, ``stuck-*`` waits
for the operator, ``flaky-*`` has a step that is tried again and again; others copy until cut over, then await confirm.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ApplicationError

from whimbrel.contracts import names
from whimbrel.contracts.heartbeat import CopyBeat
from whimbrel.contracts.migration import (
    INVENTORY,
    InventoryInput,
    InventoryResult,
    MigrationInput,
    PrecheckInput,
    PrecheckReport,
    VmSummary,
)
from whimbrel.contracts.verbs import SetBandwidth, Verb, VerbAnswer
from whimbrel.model.finding import Finding, Severity
from whimbrel.model.forecast import Forecast, RoundRecord
from whimbrel.model.ledger import Ledger
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import DiskProgress, MigrationReport, MigrationStatus, Outage, Phase, Trouble

T0 = datetime(2026, 11, 28, 22, tzinfo=UTC)
GIB = 1 << 30


@activity.defn(name="copy.disk")
async def copy_disk(disk: str) -> None:
    """Beats as a copy does, for ever."""
    while True:
        activity.heartbeat(
            CopyBeat(
                disk=disk, stage="copying", done_bytes=GIB, total_bytes=4 * GIB, rate_bytes_per_s=1 << 20, eta_s=90
            )
        )
        await asyncio.sleep(0.1)


@activity.defn(name="volume.ensure")
async def ensure_volume(disk: str) -> None:
    """Never works."""
    raise ApplicationError(f"pool for {disk} is full\nsecond line", type="QuotaExceeded")


class _Migration:
    def __init__(self) -> None:
        self.phase = Phase.PRECHECK
        self.paused = False
        self.limit: float | None = None
        self.outcome: str | None = None
        self.said: list[str] = []
        self.plan: VmPlan | None = None

    async def move(self, plan: VmPlan) -> MigrationReport:
        self.plan = plan
        if plan.vm.startswith("broken"):
            self._enter(Phase.PREPARE)
            raise ApplicationError(
                "the source cloud refused the credentials", {"action": "check them"}, type="AuthFailed"
            )
        if plan.vm.startswith("refused"):
            self._enter(Phase.REFUSED)
            return self._report("refused")
        self._enter(Phase.ATTENTION if plan.vm.startswith("stuck") else Phase.BASELINE)
        step: Any = ensure_volume if plan.vm.startswith("flaky") else copy_disk
        copy = workflow.start_activity(
            step, "vda", start_to_close_timeout=timedelta(hours=1), heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200)),
            cancellation_type=workflow.ActivityCancellationType.ABANDON,
        )  # fmt: skip
        await workflow.wait_condition(lambda: self.outcome is not None)
        copy.cancel()
        await workflow.wait_condition(workflow.all_handlers_finished)
        self._enter(Phase.COMPLETED if self.outcome == "completed" else Phase.ROLLED_BACK)
        return self._report(self.outcome or "")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        workflow.upsert_search_attributes(
            [
                SearchAttributeKey.for_keyword(names.SA_PHASE).value_set(str(phase)),
                SearchAttributeKey.for_bool(names.SA_ATTENTION).value_set(phase is Phase.ATTENTION),
                SearchAttributeKey.for_int(names.SA_PERCENT).value_set(25),
            ]
        )

    @workflow.query(name=names.STATUS_QUERY)
    def status(self) -> MigrationStatus:
        assert self.plan is not None
        trouble = None
        if self.phase is Phase.ATTENTION:
            trouble = Trouble(
                step="open writer", code="QuotaExceeded", message="pool fast is full", action="free space, then resume",
                since=T0, choices=("resume", "rollback"),
            )  # fmt: skip
        record = RoundRecord(
            number=1, kind="delta", started_at=T0, taken_at=T0, elapsed_s=4, changed_bytes=1 << 20,
            sent_bytes=1 << 20, rate_bytes_per_s=1 << 18,
        )  # fmt: skip
        running = self.phase is Phase.BASELINE
        return MigrationStatus(
            migration="0123456789", plan=self.plan.plan, vm=self.plan.vm, mode=self.plan.mode, source=self.plan.source,
            target=self.plan.target, phase=self.phase, paused=self.paused, started_at=T0, now=T0 + timedelta(minutes=2),
            steps=(), rounds=(record,), rounds_done=1,
            disks=(DiskProgress(disk="vda", percent=10), DiskProgress(disk="vdb", percent=100, total_bytes=GIB)),
            forecast=Forecast(made_at=T0, stop_s=5, delta_bytes=1, delta_s=2, boot_s=10, outage_s=17, converges=True),
            outage=None if running else Outage(stop_requested_at=T0, started_at=T0 + timedelta(seconds=21)),
            trouble=trouble, bandwidth_bytes_per_s=self.limit,
            confirm_deadline=T0 + timedelta(hours=1) if self.phase is Phase.CONFIRM else None,
            confirm_default="auto_confirm", allowed=("cutover", "sync_now") if running else ("confirm", "rollback"),
        )  # fmt: skip

    def _report(self, outcome: Any) -> MigrationReport:
        refused = outcome == "refused"
        return MigrationReport(
            status=self.status(), outcome=outcome, ledger=Ledger(),
            reason="the precheck said no" if refused else " ".join(self.said),
            findings=("warn net.mtu: 9000 here", "block vm.devices: PCI device -> remove it") if refused else (),
            leftovers=("volume x on b",) if outcome == "rolled_back" else (),
        )  # fmt: skip

    @workflow.update(name="cutover")
    def cutover(self, verb: Verb) -> VerbAnswer:
        self.said.append(f"cutover by {verb.by}: {verb.reason}")
        self._enter(Phase.CONFIRM)
        return VerbAnswer(message="cutting over")

    @cutover.validator
    def _may_cutover(self, verb: Verb) -> None:
        if self.paused:
            raise ValueError("it is paused: resume first")

    @workflow.update(name="pause")
    def pause(self, verb: Verb) -> VerbAnswer:
        self.paused = True
        return VerbAnswer(message="paused")

    @workflow.update(name="resume")
    def resume(self, verb: Verb) -> VerbAnswer:
        self.paused = False
        return VerbAnswer(message="going on")

    @workflow.update(name="sync_now")
    def sync_now(self, verb: Verb) -> VerbAnswer:
        return VerbAnswer(message="a round begins")

    @workflow.update(name="set_bandwidth")
    def set_bandwidth(self, limit: SetBandwidth) -> VerbAnswer:
        self.limit = limit.bytes_per_s
        return VerbAnswer(message=f"limit {limit.bytes_per_s}")

    @workflow.update(name="confirm")
    def confirm(self, verb: Verb) -> VerbAnswer:
        self.outcome = "completed"
        return VerbAnswer(message="confirmed")

    @confirm.validator
    def _may_confirm(self, verb: Verb) -> None:
        if self.phase is not Phase.CONFIRM:
            raise ValueError(f"there is nothing to confirm in phase {self.phase}")

    @workflow.update(name="rollback")
    def rollback(self, verb: Verb) -> VerbAnswer:
        self.outcome = "rolled_back"
        return VerbAnswer(message="rolling back")

    @workflow.update(name="abort")
    def abort(self, verb: Verb) -> VerbAnswer:
        self.outcome = "rolled_back"
        return VerbAnswer(message="giving up")


@workflow.defn(name=names.INCREMENTAL)
class Incremental(_Migration):
    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        return await self.move(start.plan)


@workflow.defn(name=names.COLD)
class Cold(_Migration):
    @workflow.run
    async def run(self, start: MigrationInput) -> MigrationReport:
        return await self.move(start.plan)


@workflow.defn(name=names.PRECHECK)
class Precheck:
    @workflow.run
    async def run(self, ask: PrecheckInput) -> PrecheckReport:
        if ask.plan.vm.startswith("broken"):
            raise ApplicationError("host a.example refused", {"action": "start libvirtd"}, type="Unavailable")
        blocked = ask.plan.vm.startswith("refused")
        unknown = Finding(rule="vm.tpm", severity=Severity.WARN, outcome="unknown", found="not known")
        return PrecheckReport(
            vm=ask.plan.vm,
            findings=(
                Finding(rule="vm.devices", severity=Severity.BLOCK, outcome="found" if blocked else "ok",
                        found="PCI device 01:00.0 is passed through" if blocked else "none", action="remove it"),
                Finding(rule="net.mtu", severity=Severity.WARN, outcome="found", found="MTU 9000 here, 1500 there"),
                unknown,
            ),
            read_bytes_per_s=float(1 << 20) if ask.probe else None,
            write_bytes_per_s=float(1 << 21) if ask.probe else None,
        )  # fmt: skip


VMS = ("db", "old", "web")


@workflow.defn(name=INVENTORY)
class Inventory:
    @workflow.run
    async def run(self, ask: InventoryInput) -> InventoryResult:
        if ask.cloud == "down":
            raise ApplicationError("cloud down: connection refused", {"action": "start it"}, type="Unavailable")
        left = [name for name in VMS if name > ask.after]
        page = left[: min(ask.limit, 2)]
        return InventoryResult(
            vms=tuple(
                VmSummary(
                    name=name, ref=f"ref-{name}", vcpus=2, memory_bytes=GIB,
                    power="off" if name == "old" else "running",
                    disk_bytes=10 * GIB, disks=1, pools=("default",), networks=("lan",),
                    suggested="cold" if name == "old" else "incremental",
                    why="it is switched off" if name == "old" else "it runs and its disks can be tracked",
                )
                for name in page
            ),
            pools=("fast",),
            networks=("lan", "wan") if ask.cloud == "kvm-b" else ("lan",),
            more=len(left) > len(page),
        )  # fmt: skip


WORKFLOWS: tuple[type, ...] = (Incremental, Cold, Precheck, Inventory)
