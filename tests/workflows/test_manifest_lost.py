"""A manifest that is damaged in the middle of a migration costs a comparison, not the migration."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

from tests.workflows.bench import MIB, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.model.progress import Phase

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_damaged_manifest_is_discarded_and_the_round_compares(orchestrator: Orchestrator, run: Run) -> None:
    """The next round notices, discards it, and ends with equal bytes and nothing left over."""
    source = orchestrator.source
    source.add_vm("app01", disks=((4 * MIB, "qcow2"),))
    source.write_disk("app01", "vda", 0, os.urandom(2 * MIB))
    plan = orchestrator.plan("app01", rounds={"cutover": "manual", "min_interval_s": 30.0, "max_interval_s": 60.0})

    async def story() -> Any:
        migration = await orchestrator.start(plan)
        await migration.until(lambda now: now.phase is Phase.ROUNDS and now.rounds_done >= 2)
        (manifest,) = orchestrator.state_dir.glob("manifests/*/vda.manifest")
        with manifest.open("r+b") as file:
            file.truncate(10000)
        source.guest_write("app01", "vda", 65536, b"\x22" * 65536)
        await migration.say(verbs.SYNC_NOW)
        compared = await migration.until(lambda now: now.rounds_done >= 3)
        await migration.say(verbs.CUTOVER)
        return compared, await migration.report()

    compared, report = run(story())
    assert compared.rounds[-1].kind == "full-compare"
    assert report.outcome == "completed"
    assert orchestrator.target.read_disk("app01", "vda") == source.read_disk("app01", "vda")
    assert orchestrator.leftovers(report.status.migration) == []
