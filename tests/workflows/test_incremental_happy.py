"""The incremental mode from end to end on in-memory clouds."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.workflows.bench import MIB, Orchestrator
from whimbrel.model.ledger import Fate
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import DiskFormat, Power

Run = Callable[[Coroutine[Any, Any, MigrationReport]], MigrationReport]


def _target_disk(orchestrator: Orchestrator, vm: str, disk: str) -> bytes:
    return orchestrator.target.read_disk(vm, disk)


@pytest.mark.parametrize("mode", ["incremental", "cold"])
def test_a_target_that_cannot_start_paused_is_compared_as_well(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    """Its first state is frozen while it is off, and stays readable."""
    source, target = orchestrator.source, orchestrator.target
    target.set_capabilities(start_paused=False, points_outlive_start=True)
    source.add_vm("app01", disks=((2 * MIB, "qcow2"),))
    source.write_disk("app01", "vda", 65536, os.urandom(MIB))
    report = run(orchestrator.migrate(orchestrator.plan("app01", mode=mode)))
    assert report.outcome == "completed", report
    assert [(record.disk, record.mismatches) for record in report.status.verify] == [("vda", 0)]
    assert report.leftovers == ()
    assert orchestrator.leftovers(report.status.migration) == []


@pytest.mark.parametrize("form", ["qcow2", "raw"])
@pytest.mark.parametrize("mode", ["incremental", "cold"])
def test_moves_every_byte_and_leaves_nothing(orchestrator: Orchestrator, run: Run, form: DiskFormat, mode: str) -> None:
    """Both disks equal, the target runs, the source is off and whole, no object of ours is left."""
    source, target = orchestrator.source, orchestrator.target
    vm = source.add_vm("app01", disks=((4 * MIB, form), (2 * MIB, form)))
    source.write_disk("app01", "vda", 65536, os.urandom(MIB))
    source.write_disk("app01", "vdb", 0, os.urandom(MIB))
    with source.scribbling("app01", "vda", seed=7, pause_s=0.02):
        report = run(orchestrator.migrate(orchestrator.plan("app01", mode=mode)))
    assert report.outcome == "completed", report
    assert report.status.phase is Phase.COMPLETED
    for disk in ("vda", "vdb"):
        assert _target_disk(orchestrator, "app01", disk) == source.read_disk("app01", disk)
    assert orchestrator.clouds.get(orchestrator.target_name).compute.inspect("app01").power is Power.RUNNING
    assert orchestrator.clouds.get(orchestrator.source_name).compute.power(vm.ref) is Power.OFF
    assert report.leftovers == ()
    assert orchestrator.leftovers(report.status.migration) == []
    assert all(record.mismatches == 0 for record in report.status.verify)
    assert {record.disk for record in report.status.verify} == {"vda", "vdb"}
    assert {entry.fate for entry in report.ledger.entries} <= {Fate.KEPT, Fate.GONE}
    assert not list(orchestrator.state_dir.glob("manifests/*"))
    assert target.calls


@pytest.mark.parametrize(
    ("placement", "rule"),
    [
        ({"sizes": {"*": "large"}}, "target.size"),
        ({"zone": "north"}, "target.zone"),
        ({"group": "apart"}, "target.group"),
    ],
)
def test_a_place_that_the_target_does_not_have_is_refused(
    orchestrator: Orchestrator, run: Run, placement: dict[str, Any], rule: str
) -> None:
    orchestrator.source.add_vm("app01")
    report = run(orchestrator.migrate(orchestrator.plan("app01", placement=placement)))
    assert report.outcome == "refused"
    assert rule in report.reason
    assert orchestrator.source.calls_of("compute.request_stop", "compute.force_off") == []
    assert orchestrator.leftovers(report.status.migration) == []
