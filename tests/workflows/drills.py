"""The VM that drills on in-memory clouds rehearse, and what must be true after each of them."""

from __future__ import annotations

import os

from activities.drill import records_of
from drivers.memory import MemoryCloud
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.model.drill import DrillRecord
from whimbrel.model.facts import NetworkFacts
from whimbrel.model.progress import MigrationReport


def rehearsed_vm(orchestrator: Orchestrator) -> Before:
    """``app01`` with two disks of data; the target has the isolated network ``drill-net``."""
    orchestrator.source.add_vm("app01", disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")))
    orchestrator.source.write_disk("app01", "vda", 65536, os.urandom(MIB))
    orchestrator.source.write_disk("app01", "vdb", 0, os.urandom(MIB))
    orchestrator.target.add_network(NetworkFacts(name="drill-net", isolated=True))
    return orchestrator.before("app01")


def records(orchestrator: Orchestrator, before: Before) -> list[DrillRecord]:
    """The records of the VM's drills."""
    directory = records_of(orchestrator.state_dir, orchestrator.source_name, before.spec.ref)
    found = directory.glob("*.json") if directory.is_dir() else ()
    return [DrillRecord.model_validate_json(path.read_text()) for path in found]


def the_record(orchestrator: Orchestrator, before: Before) -> DrillRecord:
    """The record of its only drill."""
    (record,) = records(orchestrator, before)
    return record


def assert_untouched(orchestrator: Orchestrator, report: MigrationReport, before: Before) -> None:
    """The source is as it was, the target is empty, nothing is left."""
    now = orchestrator.before("app01")
    assert now.spec == before.spec
    assert now.content == before.content
    assert MemoryCloud(orchestrator.target_name).compute.inventory() == []
    orchestrator.assert_nothing_left(report)
