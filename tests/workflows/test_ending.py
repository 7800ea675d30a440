"""Health, the final comparison, and a rollback that keeps what the target wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import BaseLost
from whimbrel.model.progress import MigrationReport, Phase

Run = Callable[..., Any]


def _vm(orchestrator: Orchestrator) -> Before:
    orchestrator.source.add_vm("app01", disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")))
    orchestrator.source.write_disk("app01", "vda", 0, os.urandom(2 * MIB))
    orchestrator.source.write_disk("app01", "vdb", 0, os.urandom(MIB))
    return orchestrator.before("app01")


def _console(pattern: str, policy: str, timeout_s: float = 2.0) -> dict[str, Any]:
    return {"checks": [{"kind": "console", "pattern": pattern}], "timeout_s": timeout_s, "on_failure": policy}


@pytest.mark.parametrize("mode", ["incremental", "cold"])
def test_failing_health_rolls_back_if_the_plan_says_so(orchestrator: Orchestrator, run: Run, mode: str) -> None:
    before = _vm(orchestrator)
    report = run(orchestrator.migrate(orchestrator.plan("app01", mode=mode, health=_console("login:", "rollback"))))
    orchestrator.assert_given_back(report, before)
    assert "health checks did not pass within 2 s" in report.reason


def test_failing_health_waits_for_the_operator(orchestrator: Orchestrator, run: Run) -> None:
    """The guest comes up late; ``resume`` checks again."""
    before = _vm(orchestrator)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", health=_console("login:", "wait")))
        now = await migrated.held("GuestUnbootable")
        assert now.trouble is not None
        assert now.trouble.choices == (verbs.RESUME, verbs.ROLLBACK)
        orchestrator.target.set_guest("app01", console="booting\nlogin:")
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_moved(report, before)
    assert report.status.health == ("VM runs", "console shows /login:/")
    assert report.status.outage is not None
    assert report.status.outage.healthy_at is not None


@pytest.mark.parametrize("when", ["after_boot", "before_boot"])
def test_a_difference_is_found(orchestrator: Orchestrator, run: Run, when: str) -> None:
    """Something writes to the target volume behind our back: told with its place, and the source is whole."""
    before = _vm(orchestrator)
    held = orchestrator.hold("compare.disk", fits=lambda job: job.disk == "vda")
    door = orchestrator.hold("volume.close_writer") if when == "after_boot" else None

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", verify={"when": when}))
        if door is not None:
            await orchestrator.reached(door)
            _spoil(orchestrator)
            door.open()
            held.open()
        else:
            await orchestrator.reached(held)
            _spoil(orchestrator)
            held.open()
        if when == "after_boot":
            now = await migrated.held("DataMismatch")
            assert now.phase is Phase.ATTENTION
        else:
            now = await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
        assert now.trouble is not None
        assert now.trouble.code == "DataMismatch"
        assert "vda: 1 blocks" in now.trouble.message
        assert "1048576" in now.trouble.message
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)


def _spoil(orchestrator: Orchestrator) -> None:
    state = orchestrator.target._state
    volume = next(each for each in state.volumes.values() if "-vda-" in each.name)
    volume.disk.write(MIB, b"not what was copied")


@pytest.mark.parametrize(
    "policy", [{"when": "before_boot"}, {"mode": "sampled", "sample_fraction": 0.5}, {"mode": "sampled"}]
)
def test_ways_to_compare(orchestrator: Orchestrator, run: Run, policy: dict[str, Any]) -> None:
    before = _vm(orchestrator)
    report = run(orchestrator.migrate(orchestrator.plan("app01", verify=policy)))
    orchestrator.assert_moved(report, before)
    assert {record.disk for record in report.status.verify} == {"vda", "vdb"}
    for record in report.status.verify:
        assert record.mode == policy.get("mode", "full")
        assert ("all data" in record.sample) is (record.mode == "full"), record.sample


@pytest.mark.parametrize("mode", ["incremental", "cold"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_rollback_that_keeps_the_targets_writes(orchestrator: Orchestrator, run: Run, mode: str, lost: bool) -> None:
    """What the target wrote since its start is on the source's disks when it runs again."""
    before = _vm(orchestrator)
    written = {0: os.urandom(65536), 3 * MIB: os.urandom(5000)}

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(
            orchestrator.plan("app01", mode=mode, keep_writes=True, confirm={"then": "wait"})
        )
        await migrated.phase(Phase.CONFIRM)
        for offset, data in written.items():
            orchestrator.target.guest_write("app01", "vda", offset, data)
        orchestrator.target.guest_write("app01", "vdb", MIB, written[0])
        if lost:
            orchestrator.target.fail("points", "open", lambda: BaseLost("bitmap gone"))
        expected.update({key: orchestrator.target_disk("app01", key) for key in ("vda", "vdb")})
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    expected: dict[str, bytes] = {}
    report = run(story())
    orchestrator.assert_given_back(report, before, same_bytes=False)
    now = orchestrator.before("app01").content
    assert now == expected
    assert now["vda"][:65536] == written[0]
    assert report.writes_kept_bytes is not None
    assert 65536 <= report.writes_kept_bytes <= 2 * MIB


def test_writes_that_cannot_be_brought_back_are_not_thrown_away(orchestrator: Orchestrator, run: Run) -> None:
    """The reverse copy fails: held with the target intact, gone on from the manifest by ``resume``."""
    before = _vm(orchestrator)
    data = os.urandom(65536)
    orchestrator.fail("copy.disk", lambda: BaseLost("unreadable"), fits=lambda job: job.kind == "reverse", when="after")

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", keep_writes=True, confirm={"then": "wait"}))
        await migrated.phase(Phase.CONFIRM)
        orchestrator.target.guest_write("app01", "vda", MIB, data)
        await migrated.say(verbs.ROLLBACK)
        await migrated.held("BaseLost")
        assert orchestrator.target_disk("app01")[MIB : MIB + 65536] == data
        await migrated.say(verbs.RESUME)
        return await migrated.report()

    report = run(story())
    orchestrator.assert_given_back(report, before, same_bytes=False)
    assert orchestrator.before("app01").content["vda"][MIB : MIB + 65536] == data


def test_without_keep_writes_the_source_is_as_at_the_cutover(orchestrator: Orchestrator, run: Run) -> None:
    """The target wrote from its first instruction on; the comparison does not mind, the source does not see it."""
    before = _vm(orchestrator)

    def boot(ref: str) -> None:
        orchestrator.target.scribble(ref, "vda", seed=5)

    orchestrator.target.when_guest_runs("app01", boot)

    async def story() -> MigrationReport:
        migrated = await orchestrator.start(orchestrator.plan("app01", confirm={"then": "wait"}))
        now = await migrated.phase(Phase.CONFIRM)
        assert [record.mismatches for record in now.verify] == [0, 0]
        assert orchestrator.target_disk("app01") != before.content["vda"]
        await migrated.say(verbs.ROLLBACK)
        return await migrated.report()

    orchestrator.assert_given_back(run(story()), before)
