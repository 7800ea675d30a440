"""A mover dies in the middle of a copy: another goes on from the manifest, an orphaned attempt does no harm."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from activities import copy as copy_module
from activities.bulk import BulkWatch
from tests.workflows.bench import MIB, Orchestrator
from tests.workflows.conftest import Loop
from whimbrel.contracts import verbs
from whimbrel.contracts.timeouts import BULK, TABLE
from whimbrel.model.progress import MigrationReport, Phase
from worker import host_governor

Run = Callable[..., Any]
SIZE = 24 * MIB


@pytest.fixture
def bare(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    """Two clouds and no mover."""
    monkeypatch.setattr("activities.probe.DIRTY_WATCH_S", 0.05)
    return Orchestrator(client, tmp_path / "state")


def _copied(orchestrator: Orchestrator) -> int:
    return sum(len(volume.disk.allocated()) * 65536 for volume in orchestrator.target._state.volumes.values())


def test_a_second_mover_goes_on(bare: Orchestrator, loop: Loop) -> None:
    """The first is stopped without grace in the baseline; the second does not read again what was copied."""
    bare.source.add_vm("app01", disks=((SIZE, "qcow2"),))
    bare.source.write_disk("app01", "vda", 0, os.urandom(SIZE))
    before = bare.before("app01")

    async def story() -> MigrationReport:
        first = bare.data_worker(host_limit=4.0 * MIB)
        await first.__aenter__()
        migrated = await bare.start(bare.plan("app01", rounds={"cutover": "manual"}))
        await migrated.phase(Phase.BASELINE)
        while _copied(bare) < 10 * MIB:  # noqa: ASYNC110 - written by threads
            await asyncio.sleep(0.05)
        # Who opens the host's governor sets its limit: the copy stands still, however long the shutdown takes.
        host_governor(bare.state_dir, 1.0)
        await first.shutdown()
        copied = _copied(bare)
        assert copied < SIZE
        async with bare.data_worker():
            now = await migrated.phase(Phase.ROUNDS)
            assert now.rounds[0].read_bytes <= SIZE + 8 * MIB
            await migrated.say(verbs.CUTOVER)
            return await migrated.report()

    report = loop.run(story())
    bare.assert_moved(report, before)


def test_an_orphaned_attempt_overlaps_with_the_next(
    orchestrator: Orchestrator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that Temporal gave up goes on writing while the next one runs: the bytes are right all the same."""
    orchestrator.source.add_vm("app01", disks=((16 * MIB, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(16 * MIB))
    before = orchestrator.before("app01")
    silent = _SilentOnce()
    monkeypatch.setattr(copy_module, "BulkWatch", silent.watch)
    monkeypatch.setitem(TABLE, "copy.disk", replace(BULK, heartbeat=timedelta(seconds=2)))

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", bandwidth_bytes_per_s=3.0 * MIB, rounds={"cutover": "manual"})
        migrated = await orchestrator.start(plan)
        await migrated.phase(Phase.ROUNDS)
        await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=None)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)
    assert orchestrator.started().count("copy.disk") >= 3
    assert silent.attempts >= 3


class _SilentOnce:
    """Gives the first copy a watch that never hears of its end and tells nobody that it lives."""

    def __init__(self) -> None:
        self.attempts = 0

    def watch(self, *args: Any, **kwargs: Any) -> Any:
        self.attempts += 1
        made = BulkWatch(*args, **kwargs)
        if self.attempts == 1:
            made._thread = threading.Thread(target=lambda: None)
        return made


def test_the_heartbeat_is_short_enough() -> None:
    """A dead mover is noticed within half a minute."""
    assert BULK.heartbeat is not None
    assert BULK.heartbeat <= timedelta(seconds=30)
