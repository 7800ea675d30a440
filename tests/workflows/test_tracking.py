"""Change tracking that is lost, damaged, or lies: a full compare finds what it does not tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import BaseLost
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.model.vm import Power

Run = Callable[..., Any]
MANUAL = {"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0}


def _vm(orchestrator: Orchestrator, size: int = 8 * MIB) -> Before:
    orchestrator.source.add_vm("app01", disks=((size, "qcow2"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(size))
    return orchestrator.before("app01")


@pytest.mark.parametrize("how", ["damaged", "forgotten", "refused"])
def test_a_lost_base_leads_to_a_full_compare(orchestrator: Orchestrator, run: Run, how: str) -> None:
    """All is read, only what differs is sent; afterwards tracking is trusted again."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds=MANUAL))
        await migrated.until(lambda now: now.rounds_done == 2)
        orchestrator.source.guest_write("app01", "vda", 3 * MIB, os.urandom(65536))
        if how == "damaged":
            orchestrator.source.damage_tracking("app01")
        elif how == "forgotten":
            orchestrator.source.lose_token_metadata("app01")
        else:
            orchestrator.source.fail("points", "open", lambda: BaseLost("inconsistent bitmap"))
        await migrated.say(verbs.SYNC_NOW)
        now = await migrated.until(lambda now: now.rounds_done == 3)
        compared = now.rounds[-1]
        assert compared.kind == "full-compare"
        assert compared.read_bytes < MIB, "the copy itself reads only what the compare found"
        assert 65536 <= compared.sent_bytes <= 4 * 65536
        orchestrator.source.guest_write("app01", "vda", MIB, os.urandom(65536))
        await migrated.say(verbs.SYNC_NOW)
        again = (await migrated.until(lambda now: now.rounds_done == 4)).rounds[-1]
        assert again.kind == "delta"
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_tracking_that_lies_is_caught(orchestrator: Orchestrator, run: Run) -> None:
    """A write that no bitmap saw: the sample of unchanged blocks finds it, and the round compares all."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", rounds=MANUAL, verify={"unchanged_sample": 1.0})
        migrated = await orchestrator.start(plan)
        await migrated.until(lambda now: now.rounds_done == 2)
        disk = orchestrator.source.disk("app01", "vda")
        # Past the disk's own write, which marks the bitmaps: what a tracking with a defect would miss.
        super(type(disk), disk).write(5 * MIB, os.urandom(65536))
        await migrated.say(verbs.SYNC_NOW)
        now = await migrated.until(lambda now: now.rounds_done == 3)
        assert now.rounds[-1].lied_blocks >= 1
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)


def test_a_hypervisor_that_dies_in_the_baseline(orchestrator: Orchestrator, run: Run) -> None:
    """Its point is gone: a new one is taken, what was copied is compared, not copied again."""
    _vm(orchestrator)
    held = orchestrator.hold("copy.disk", when="after")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds={"cutover": "manual"}))
        await orchestrator.reached(held)
        orchestrator.source.crash_hypervisor("app01")
        orchestrator.source.set_power("app01", Power.RUNNING)
        orchestrator.source.guest_write("app01", "vda", 0, os.urandom(65536))
        held.open()
        await migrated.until(lambda now: now.rounds_done >= 2)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, orchestrator.before("app01"))
    assert [each.kind for each in report.status.rounds].count("baseline") == 1


@pytest.mark.usefixtures("quick_retries")
def test_a_hypervisor_that_dies_under_the_copy(orchestrator: Orchestrator, run: Run) -> None:
    """The copy's source goes away in the middle of the baseline; another point, and the copy goes on by hashes."""
    before = _vm(orchestrator, 16 * MIB)

    async def story() -> MigrationReport:
        plan = orchestrator.plan("app01", bandwidth_bytes_per_s=8.0 * MIB, rounds={"cutover": "manual"})
        held = orchestrator.hold("copy.disk")
        migrated = await orchestrator.start(plan)
        await orchestrator.reached(held)
        orchestrator.source.crash_hypervisor("app01")
        orchestrator.source.set_power("app01", Power.RUNNING)
        held.open()
        await migrated.phase(Phase.ROUNDS)
        await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=None)
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    orchestrator.assert_moved(run(story()), before)
    opened = [call.args["key"] for call in orchestrator.source.calls if (call.port, call.method) == ("points", "open")]
    assert len(opened) > len(set(opened)), "the same key was opened again"


@pytest.mark.usefixtures("quick_retries")
def test_a_hypervisor_that_dies_in_a_round(orchestrator: Orchestrator, run: Run) -> None:
    """The guest comes back with its bitmaps damaged: a compare, then rounds as before."""
    _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds=MANUAL))
        await migrated.until(lambda now: now.rounds_done == 2)
        held = orchestrator.hold("copy.disk")
        orchestrator.source.guest_write("app01", "vda", 2 * MIB, os.urandom(65536))
        await migrated.say(verbs.SYNC_NOW)
        await orchestrator.reached(held)
        orchestrator.source.crash_hypervisor("app01")
        orchestrator.source.set_power("app01", Power.RUNNING)
        held.open()
        now = await migrated.until(lambda now: now.rounds_done == 3)
        assert now.rounds[-1].kind == "full-compare"
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, orchestrator.before("app01"))


def test_raw_disks_have_no_tracking_and_move_all_the_same(orchestrator: Orchestrator, run: Run) -> None:
    """Every round of a raw disk finds what changed by block hashes."""
    orchestrator.source.add_vm("app01", disks=((8 * MIB, "raw"),))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(8 * MIB))

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", rounds=MANUAL))
        await migrated.until(lambda now: now.rounds_done == 2)
        orchestrator.source.guest_write("app01", "vda", 2 * MIB, os.urandom(65536))
        await migrated.say(verbs.SYNC_NOW)
        now = await migrated.until(lambda now: now.rounds_done == 3)
        assert 65536 <= now.rounds[-1].sent_bytes <= MIB
        await migrated.say(verbs.CUTOVER)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, orchestrator.before("app01"))
