"""Guests that misbehave, hypervisors that die under a VM, targets that run full, connections that are cut."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from labs.kvm import processes
from tests.e2e.images import MIB
from tests.e2e.remains import session_pids
from tests.e2e.scene import Scene, with_domain
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def test_guest_reset_during_a_round(scene: Scene) -> None:
    scene.boot(dirty_kib=2048)
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(1)
    running.say("set_bandwidth", bytes_per_s=2e6)
    running.running_step("round ")
    running.activity("copy.disk")
    with_domain(scene.stage, "a", scene.guest.name, lambda domain: domain.reset(0))
    scene.wait_boots(2)
    running.rounds(running.status().rounds_done + 2)
    running.say("cutover")
    report = scene.confirm(running)
    scene.moved(running, report, boot=3)
    assert "full-compare" not in [record.kind for record in report.status.rounds]


def test_qemu_of_the_source_killed_and_started_again(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    scene.crash()
    scene.start_again()
    scene.wait_boots(2)
    running.rounds(running.status().rounds_done + 3)
    running.say("cutover")
    report = scene.confirm(running)
    scene.moved(running, report, boot=3)
    kinds = [record.kind for record in report.status.rounds]
    assert "full-compare" in kinds
    assert kinds[kinds.index("full-compare") + 1] == "delta", "tracking works again after one full compare"


def test_qemu_of_the_source_killed_and_cut_over_while_off(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(2)
    scene.crash()
    running.say("cutover")
    scene.moved(running, scene.confirm(running))


def test_qemu_of_the_source_killed_in_the_baseline(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 8 * MIB)
    scene.crash()
    scene.start_again()
    scene.moved(running, scene.confirm(running, timeout_s=240), boot=3)


@pytest.fixture
def small_pool(scene: Scene) -> Path:
    """A pool that has room for the disk until something else fills it."""
    scene.stage.lab.add_small_pool("b", 96 * MIB)
    return scene.stage.lab.pool_path("b", "small")


def _fill_up(pool: Path, leave: int) -> Path:
    other = pool / "somebody-elses"
    free = 96 * MIB - sum(path.stat().st_blocks * 512 for path in pool.iterdir())
    other.write_bytes(bytes([7]) * (free - leave))
    return other


def test_full_target_pool_is_enlarged(scene: Scene, small_pool: Path) -> None:
    scene.boot()
    running = scene.migrate(storage={"*": "small"}, bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 12 * MIB)
    other = _fill_up(small_pool, 4 * MIB)
    try:
        held = running.phase(Phase.ATTENTION)
        assert held.trouble is not None
        assert held.trouble.code == "QuotaExceeded"
        assert "resume" in held.trouble.choices
        scene.stage.lab.add_small_pool("b", 256 * MIB)
        running.say("resume")
        report = scene.confirm(running)
        scene.moved(running, report)
        assert report.status.rounds[0].sent_bytes < 34 * MIB, "what was copied before is not sent again"
    finally:
        other.unlink()


def test_full_target_pool_is_given_up(scene: Scene, small_pool: Path) -> None:
    scene.boot()
    running = scene.migrate(storage={"*": "small"}, bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 12 * MIB)
    other = _fill_up(small_pool, 4 * MIB)
    try:
        running.phase(Phase.ATTENTION)
        running.say("rollback")
        scene.untouched(running, running.report())
    finally:
        other.unlink()


def test_connection_to_the_target_is_cut(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate(bandwidth_bytes_per_s=4e6)
    scene.wait_copied(running, 8 * MIB)
    pids = session_pids(scene.stage, "b", running.migration)
    assert len(pids) == 1
    assert processes.send(scene.stage.lab.cloud("b"), pids[0], signal.SIGKILL)
    report = scene.confirm(running, timeout_s=240)
    scene.moved(running, report)


def test_guest_that_ignores_the_power_button_is_forced_off(scene: Scene) -> None:
    scene.boot(ignore_acpi=True)
    running = scene.migrate(stop={"graceful_timeout_s": 3.0, "then": "force"})
    running.phase(Phase.CONFIRM)
    assert scene.boots()[0].records[-1].kind == "run"
    running.say("confirm")
    scene.moved(running, running.report())


def test_guest_that_ignores_the_power_button_keeps_running(scene: Scene) -> None:
    scene.boot(ignore_acpi=True)
    running = scene.migrate(stop={"graceful_timeout_s": 3.0, "then": "hold"})
    seen = running.until(lambda now: now.trouble is not None, "a cutover taken back")
    assert seen.trouble is not None
    assert "did not shut down" in seen.trouble.message
    running.rounds(seen.rounds_done + 1)
    running.say("abort")
    scene.untouched(running, running.report())
