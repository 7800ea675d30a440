"""The way back, from every phase."""

from __future__ import annotations

import pytest

from tests.e2e.images import MIB
from tests.e2e.scene import Scene
from whimbrel.model.progress import MigrationReport, Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
NEVER = {"checks": [{"kind": "console", "pattern": "this is never printed"}], "timeout_s": 5.0}


def test_rollback_brings_the_targets_writes_back(scene: Scene) -> None:
    scene.boot("qcow2", "qcow2")
    running = scene.migrate(keep_writes=True)
    running.phase(Phase.CONFIRM)
    scene.wait_records(2, 10)
    running.say("rollback", reason="the new site is slow")
    report = running.report()
    scene.untouched(running, report, boots=3)
    written_at_target = scene.boots()[1]
    assert written_at_target.number == 2
    assert written_at_target.records[-1].kind == "final"
    assert "the new site is slow" in report.reason
    assert report.source_restored is True
    assert report.writes_kept_bytes is not None
    assert report.writes_kept_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_rollback_from_the_confirm_gate_gives_the_targets_writes_up(scene: Scene, form: str) -> None:
    scene.boot(form, autostart=True)
    running = scene.migrate()
    running.phase(Phase.CONFIRM)
    assert not scene.autostart()
    scene.wait_records(2, 5)
    running.say("rollback")
    report = running.report()
    scene.untouched(running, report, boots=2)
    assert scene.autostart()
    assert report.writes_kept_bytes is None


@pytest.mark.slow
def test_rollback_with_writes_of_a_raw_disk(scene: Scene) -> None:
    scene.boot("raw")
    running = scene.migrate(keep_writes=True)
    running.phase(Phase.CONFIRM)
    scene.wait_records(2, 10)
    running.say("rollback")
    scene.untouched(running, running.report(), boots=3)


@pytest.mark.slow
def test_rollback_in_the_precheck(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate()
    running.activity("precheck.run")
    running.say("rollback")
    scene.untouched(running, running.report())


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rollback", "abort"])
def test_rollback_in_the_baseline(scene: Scene, verb: str) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=2e6)
    scene.wait_copied(running, 4 * MIB)
    running.say(verb)
    scene.untouched(running, running.report())


@pytest.mark.slow
def test_abort_between_rounds(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(3)
    running.say("abort")
    scene.untouched(running, running.report())


@pytest.mark.slow
def test_rollback_while_paused(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=2e6)
    scene.wait_copied(running, 4 * MIB)
    running.say("pause")
    running.until(lambda now: now.paused, "a pause")
    running.say("rollback")
    scene.untouched(running, running.report())


@pytest.mark.slow
def test_rollback_in_the_final_delta(scene: Scene) -> None:
    scene.boot(dirty_kib=2048)
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    running.say("set_bandwidth", bytes_per_s=5e5)
    running.say("cutover")
    running.running_step("final delta")
    running.activity("copy.disk")
    assert not scene.guest.is_running("a")
    assert "rollback" in running.refused("abort")
    running.say("rollback")
    scene.untouched(running, running.report(), boots=2)


@pytest.mark.slow
def test_rollback_of_a_cold_migration_in_its_copy(scene: Scene) -> None:
    scene.boot("raw")
    running = scene.migrate("cold", bandwidth_bytes_per_s=2e6)
    scene.wait_copied(running, 4 * MIB)
    running.say("rollback")
    scene.untouched(running, running.report(), boots=2)


@pytest.mark.slow
def test_the_timer_rolls_back(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(confirm={"after_s": 2.0, "then": "auto_rollback"})
    report: MigrationReport = running.report()
    scene.untouched(running, report, boots=2)


@pytest.mark.slow
def test_failed_health_checks_roll_back(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(health={**NEVER, "on_failure": "rollback"})
    report = running.report()
    scene.untouched(running, report, boots=2)
    assert "health checks did not pass" in report.reason


@pytest.mark.slow
def test_failed_health_checks_wait_for_the_operator(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(health=NEVER)
    held = running.phase(Phase.ATTENTION)
    assert held.trouble is not None
    assert held.trouble.code == "GuestUnbootable"
    assert set(held.trouble.choices) >= {"resume", "rollback"}
    running.say("rollback")
    scene.untouched(running, running.report(), boots=2)
