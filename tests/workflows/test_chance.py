"""Random faults at random activities and random verbs: every migration ends, in one of its two good ways."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.service import RPCError

from tests.workflows.bench import Migrated, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.contracts.timeouts import TABLE
from whimbrel.errors import BaseLost, Conflict, QuotaExceeded, Unavailable
from whimbrel.model.progress import TERMINAL, MigrationReport, Phase
from whimbrel.model.vm import DiskFormat

Run = Callable[..., Any]
ERRORS = (Unavailable, Unavailable, Conflict, QuotaExceeded)
SPOKEN = (verbs.PAUSE, verbs.RESUME, verbs.SYNC_NOW, verbs.CUTOVER, verbs.CONFIRM, verbs.ROLLBACK, verbs.ABORT)
WEIGHTS = (4, 6, 4, 6, 6, 1, 1)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 120))])
def test_any_misfortune_ends_well(orchestrator: Orchestrator, run: Run, seed: int) -> None:
    chance = random.Random(seed)
    formats: list[DiskFormat] = ["qcow2", "raw"]
    disks = tuple((chance.randint(1, 48) * 65536, chance.choice(formats)) for _ in range(chance.randint(1, 3)))
    orchestrator.source.add_vm("app01", disks=disks)
    for key in "abc"[: len(disks)]:
        orchestrator.source.write_disk("app01", f"vd{key}", 0, os.urandom(32768))
    mode = chance.choice(["incremental", "incremental", "cold"])
    for _ in range(chance.randint(1, 6)):
        error = chance.choice(ERRORS)
        activity = chance.choice(sorted(TABLE.keys() - {"compute.wait_off"}))
        orchestrator.fail(activity, partial(error, "by chance"), when=chance.choice(["before", "after"]))
    if chance.random() < 0.3:
        orchestrator.source.fail("points", "open", lambda: BaseLost("by chance"))
    plan = orchestrator.plan(
        "app01",
        mode=mode,
        keep_writes=chance.random() < 0.3,
        verify={"when": chance.choice(["before_boot", "after_boot"]), "unchanged_sample": 0.2},
        confirm={"after_s": 3.0, "then": chance.choice(["auto_confirm", "auto_rollback"])},
        rounds={"cutover": chance.choice(["auto", "manual"]), "min_interval_s": 0.1, "max_interval_s": 0.2},
    )

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(plan)
        await _talk(migrated, chance)
        return await migrated.report()

    with orchestrator.source.scribbling("app01", "vda", seed=seed, pause_s=0.05):
        before = orchestrator.before("app01")
        report = run(story())
    if report.outcome == "completed":
        orchestrator.assert_moved(report, before)
    elif report.outcome == "refused":  # the misfortune struck the probed path: nothing was touched
        orchestrator.assert_nothing_left(report)
        assert orchestrator.before("app01").spec == before.spec
    else:
        orchestrator.assert_given_back(report, before, same_bytes=False)


async def _talk(migrated: Migrated, chance: random.Random) -> None:
    """Say this and that; after a while only what leads to an end."""
    for turn in range(400):
        now = await migrated.status()
        if now.phase in TERMINAL:
            return
        verb = chance.choices(SPOKEN, WEIGHTS)[0]
        if turn > 30:
            verb = verbs.RESUME if now.phase is Phase.ATTENTION or now.paused else verbs.CUTOVER
        if verb in now.allowed:
            try:
                await migrated.say(verb)
            except (WorkflowUpdateFailedError, RPCError):
                continue  # it has moved on meanwhile
        await asyncio.sleep(chance.random() * 0.15)
