"""Two in-memory clouds on one storage, and what must hold when disks change hands."""

from __future__ import annotations

import os
from typing import Any

from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport
from whimbrel.model.vm import Power

POOL = "shared"


def share(orchestrator: Orchestrator, name: str = "app01", **traits: Any) -> Before:
    """A VM with two disks in a pool of both clouds."""
    if POOL not in orchestrator.source._state.pools:
        orchestrator.source.share_pool(POOL, orchestrator.target_name)
    orchestrator.source.add_vm(name, disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")), pool=POOL, **traits)
    orchestrator.source.write_disk(name, "vda", 65536, os.urandom(MIB))
    orchestrator.source.write_disk(name, "vdb", 0, os.urandom(MIB))
    return orchestrator.before(name)


def shared_plan(orchestrator: Orchestrator, vm: str = "app01", **changes: Any) -> VmPlan:
    """A plan of mode dual-attach that maps the shared pool to itself."""
    return orchestrator.plan(vm, mode="dual-attach", storage={POOL: POOL}, **changes)


def content(orchestrator: Orchestrator, before: Before) -> dict[str, bytes]:
    """What the volumes of a VM hold now, whoever has them."""
    return {
        disk.key: orchestrator.source.read_volume(POOL, f"{before.spec.name}-{disk.key}") for disk in before.spec.disks
    }


def assert_never_double(orchestrator: Orchestrator) -> None:
    """At no moment a volume was open in two VMs."""
    assert orchestrator.source.double_opens == []
    assert orchestrator.target.double_opens == []


def assert_handed_over(orchestrator: Orchestrator, report: MigrationReport, before: Before, **how: Any) -> None:
    """The target has the very volumes, nothing was copied, nothing is left."""
    assert report.outcome == "completed", (report.reason, report.status.steps)
    now = MemoryCloud(orchestrator.target_name).compute.inspect(before.spec.name)
    assert now.power is how.get("power", Power.RUNNING)
    assert now.owner_migration is None
    assert {disk.pool for disk in now.disks} == {POOL}
    names = {disk.key: disk.location.rpartition("/")[2] for disk in now.disks}
    assert names == {disk.key: f"{before.spec.name}-{disk.key}" for disk in before.spec.disks}
    assert (report.bytes_sent, report.bytes_read, report.status.rounds_done) == (0, 0, 0)
    assert {record.mode for record in report.status.verify} == {"same-volume"}
    assert len(report.status.verify) == len(before.spec.disks)
    orchestrator.assert_nothing_left(report)
    assert_never_double(orchestrator)
