"""A whole orchestrator in one process for tests: Temporal dev server, both workers, two in-memory clouds."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.testing import TimeSkipper
from temporalio.worker import Worker

import worker as worker_module
from drivers.memory import MemoryCloud, Scenario
from tests.workflows import strikes
from tests.workflows.streams import InProcessStreams
from tests.workflows.strikes import Misfortune, Strike
from whimbrel.contracts import verbs
from whimbrel.contracts.migration import DrillInput, MigrationInput
from whimbrel.contracts.names import CONTROL_QUEUE, DRILL, STATUS_QUERY, WORKFLOW_OF_MODE
from whimbrel.contracts.verbs import SetBandwidth, Verb, VerbAnswer
from whimbrel.model.naming import drill_id, workflow_id
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import TERMINAL, MigrationReport, MigrationStatus, Phase
from whimbrel.model.vm import Power, VmSpec
from whimbrel.ports.cloud import Cloud
from whimbrel.runtime.liveness import Liveness
from whimbrel.runtime.sandbox import runner
from whimbrel.runtime.settings import WorkerSettings
from whimbrel.runtime.translation import ErrorTranslation

MIB = 1 << 20
T = TypeVar("T")
SETTLE_S = 240.0


class MemoryClouds:
    """Registry of the in-memory clouds of one test."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def get(self, name: str) -> Cloud:
        """The cloud, a new object for every call, as a restarted worker would make it."""
        assert name in self._names
        return MemoryCloud(name)

    def names(self) -> list[str]:
        """Both names."""
        return list(self._names)


@dataclass
class Migrated:
    """A running migration, with the operator's verbs."""

    handle: WorkflowHandle[Any, MigrationReport]

    async def report(self) -> MigrationReport:
        """Its result."""
        return await asyncio.wait_for(self.handle.result(), SETTLE_S)

    async def held(self, code: str | None = None) -> MigrationStatus:
        """Wait until it asks the operator."""
        now = await self.phase(Phase.ATTENTION)
        assert now.trouble is not None
        assert code in {None, now.trouble.code}, now.trouble
        return now

    async def cancel(self) -> None:
        """Cancel the workflow in Temporal, past our verbs."""
        await self.handle.cancel()

    async def status(self) -> MigrationStatus:
        """The status query."""
        found: MigrationStatus = await self.handle.query(STATUS_QUERY, result_type=MigrationStatus)
        return found

    async def until(self, fits: Callable[[MigrationStatus], bool], timeout_s: float = SETTLE_S) -> MigrationStatus:
        """Wait for a status."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            now = await self.status()
            if fits(now):
                return now
            if now.phase in TERMINAL:
                ended = await self.report()
                raise AssertionError(f"ended as {ended.outcome}: {ended.reason or ended.status.steps}")
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"still {now.phase}: {now.trouble} {[s.name for s in now.steps]}")
            await asyncio.sleep(0.1)

    async def phase(self, phase: Phase) -> MigrationStatus:
        """Wait for a phase."""
        return await self.until(lambda now: now.phase is phase)

    async def say(self, verb: str, **words: Any) -> str:
        """Say a verb; its answer."""
        ask = SetBandwidth(**words) if verb == verbs.SET_BANDWIDTH else Verb(**words)
        answer: VerbAnswer = await self.handle.execute_update(verb, ask, result_type=VerbAnswer)
        return answer.message

    async def refused(self, verb: str, **words: Any) -> str:
        """Say a verb that must be refused; the reason."""
        with pytest.raises(WorkflowUpdateFailedError) as refusal:
            await self.say(verb, **words)
        cause = refusal.value.cause
        assert isinstance(cause, ApplicationError)
        return cause.message


@dataclass(frozen=True)
class Before:
    """The source as it was read before a migration."""

    spec: VmSpec
    content: dict[str, bytes]


class Orchestrator:
    """Two in-memory clouds, ``source`` and ``target``, and what moves VMs between them."""

    def __init__(self, client: Client, state_dir: Path) -> None:
        tag = uuid.uuid4().hex[:8]
        self.tag = tag
        self.client = client
        self.skipping = TimeSkipper(client)
        """Its client starts workflows whose timers and retries take no time."""
        self.state_dir = state_dir
        self.site = f"site-{tag}"
        self.source_name, self.target_name = f"src-{tag}", f"dst-{tag}"
        MemoryCloud(self.source_name), MemoryCloud(self.target_name)
        self.source, self.target = Scenario(self.source_name), Scenario(self.target_name)
        self.clouds = MemoryClouds((self.source_name, self.target_name))
        self.streams = InProcessStreams()

    def plan(self, vm: str, **changes: Any) -> VmPlan:
        """A plan that is quick: short intervals, no boot to wait for."""
        base: dict[str, Any] = {
            "plan": f"{self.tag}-{uuid.uuid4().hex[:6]}",
            "vm": vm,
            "source": self.source_name,
            "target": self.target_name,
            "site": self.site,
            "networks": {"*": "default"},
            "storage": {"*": "default"},
            "rounds": {"min_interval_s": 0.2, "max_interval_s": 1.0, "outage_budget_s": 120.0},
            "stop": {"graceful_timeout_s": 5.0},
            "health": {"timeout_s": 60.0},
            "confirm": {"after_s": 0.1, "then": "auto_confirm"},
        }
        return VmPlan.model_validate({**base, **changes})

    async def start(self, plan: VmPlan, *, skip: bool = False) -> Migrated:
        """Start the migration of a plan; with ``skip`` time is skipped whenever it only waits."""
        client = self.skipping.client if skip else self.client
        handle = await client.start_workflow(
            WORKFLOW_OF_MODE[plan.mode],
            MigrationInput(plan=plan),
            id=workflow_id(plan.plan, plan.vm),
            task_queue=CONTROL_QUEUE,
            result_type=MigrationReport,
        )
        return Migrated(handle)

    async def rehearse(self, plan: VmPlan, *, from_copy: bool = False) -> Migrated:
        """Start the drill of a plan."""
        handle = await self.client.start_workflow(
            DRILL,
            DrillInput(plan=plan, from_copy=from_copy),
            id=drill_id(plan.plan, plan.vm),
            task_queue=CONTROL_QUEUE,
            result_type=MigrationReport,
        )
        return Migrated(handle)

    async def migrate(self, plan: VmPlan, *, skip: bool = False) -> MigrationReport:
        """Start, and wait for the end."""
        return await (await self.start(plan, skip=skip)).report()

    def hold(self, activity: str, **choice: Any) -> Strike:
        """Hold the next activity of this type at its door until ``open``."""
        return strikes.add(Strike(self.tag, activity, gate=threading.Event(), **choice))

    def fail(self, activity: str, error: Callable[[], BaseException], **choice: Any) -> Strike:
        """Let the next activity of this type fail."""
        return strikes.add(Strike(self.tag, activity, error=error, **choice))

    async def reached(self, strike: Strike, timeout_s: float = SETTLE_S) -> None:
        """Wait until a strike has struck."""
        assert await asyncio.to_thread(strike.reached.wait, timeout_s), f"{strike.activity} was never called"

    def started(self) -> list[str]:
        """Types of the activities begun so far, in order, every attempt."""
        return strikes.started(self.tag)

    def target_disk(self, vm: str, disk: str = "vda") -> bytes:
        """The bytes of a disk at the target now."""
        return self.target.read_disk(vm, disk)

    def before(self, vm: str) -> Before:
        """The source VM as it is now."""
        compute = MemoryCloud(self.source_name).compute
        spec = compute.inspect(vm)
        content = {disk.key: self.source.read_disk(vm, disk.key) for disk in spec.disks}
        return Before(spec, content)

    def assert_given_back(self, report: MigrationReport, before: Before, *, same_bytes: bool = True) -> None:
        """The source is as it was, nothing of the migration is anywhere, and the report says so."""
        assert report.outcome == "rolled_back", report
        now = self.before(before.spec.ref)
        assert now.spec.definition_digest == before.spec.definition_digest
        assert now.spec.power is before.spec.power
        assert now.spec.autostart is before.spec.autostart
        if same_bytes:
            assert now.content == before.content
        self.assert_nothing_left(report)
        assert MemoryCloud(self.target_name).compute.inventory() == []
        assert report.source_restored in {True, None}

    def assert_moved(self, report: MigrationReport, before: Before) -> None:
        """The target runs on the source's bytes, the source is off and whole, nothing else is left."""
        assert report.outcome == "completed", (report.reason, report.status.steps)
        vm = before.spec
        for disk in vm.disks:
            assert self.target_disk(vm.name, disk.key) == self.source.read_disk(vm.ref, disk.key)
        assert MemoryCloud(self.target_name).compute.inspect(vm.name).power is Power.RUNNING
        assert self.before(vm.ref).spec.power is Power.OFF
        assert self.before(vm.ref).spec.definition_digest == vm.definition_digest
        self.assert_nothing_left(report)

    def assert_nothing_left(self, report: MigrationReport) -> None:
        """No object of ours on either cloud, nor a manifest."""
        assert report.leftovers == ()
        assert self.leftovers(report.status.migration) == []
        assert not list(self.state_dir.glob("manifests/*"))
        assert not list(self.state_dir.glob("streams/*"))
        assert not list(self.streams.socket_dir.iterdir())
        assert report.ledger.open_entries() == ()

    def leftovers(self, migration: str) -> list[str]:
        """What either cloud still holds of a migration, looked up past the ports."""
        return self.source.leftovers(migration) + self.target.leftovers(migration)

    def data_worker(self, *, host_limit: float | None = None) -> Worker:
        """A mover for this test's site; ``host_limit`` in bytes per second."""
        activities = worker_module.data_activities(
            self.clouds,
            self.state_dir,
            worker_module.host_governor(self.state_dir, host_limit),
            no_progress_s=30.0,
            socket_dir=self.streams.socket_dir,
            launch=self.streams.launch,
            stop=self.streams.stop,
        )
        return Worker(
            self.client,
            task_queue=f"data-{self.site}",
            activities=activities,
            activity_executor=ThreadPoolExecutor(8),
            interceptors=[ErrorTranslation(), Liveness(), Misfortune()],
            max_heartbeat_throttle_interval=worker_module.HEARTBEAT_THROTTLE,
        )


class AnyCloud:
    """Registry over all in-memory clouds of the process: one control worker serves every test."""

    def get(self, name: str) -> Cloud:
        """The cloud of this name."""
        return MemoryCloud(name)

    def names(self) -> list[str]:
        """Not needed by any activity."""
        return []


@asynccontextmanager
async def control_worker(client: Client) -> AsyncIterator[Worker]:
    """Workflows and cloud calls."""
    served = Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=worker_module.WORKFLOWS,
        activities=worker_module.control_activities(AnyCloud()),
        activity_executor=ThreadPoolExecutor(16),
        workflow_runner=runner(),
        interceptors=[ErrorTranslation(), Liveness(), Misfortune()],
        max_heartbeat_throttle_interval=worker_module.HEARTBEAT_THROTTLE,
        debug_mode=os.environ.get("WHIMBREL_TEST_DEBUG") == "1",
    )
    async with served:
        yield served


def settings() -> WorkerSettings:
    """Settings as a worker would have them."""
    return WorkerSettings()
