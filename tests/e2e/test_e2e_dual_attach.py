"""A real guest's disks change hands between two clouds on one storage."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from tests.e2e.disk_watch import DiskWatch
from tests.e2e.remains import leftovers
from tests.e2e.running import Running
from tests.e2e.scene import Scene, definition, with_domain
from whimbrel.model.progress import MigrationReport, Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]
SHARED = {"storage": {"shared": "shared"}}


def completed(scene: Scene, running: Running, report: MigrationReport, *, boot: int = 2) -> None:
    """On b with the very same image and every record; a has forgotten it; nothing is left."""
    assert report.outcome == "completed", report.reason
    assert (report.leftovers, report.bytes_sent) == ((), 0)
    guest = scene.guest
    scene.wait_boots(boot)
    assert not guest.is_defined("a")
    assert guest.is_running("b")
    guest.stop_writing()
    guest.destroy("b")
    images = guest.disk_paths("b")
    assert {path.parent for path in images.values()} == {scene.stage.lab.pool_path("b", "shared")}
    acknowledged = [record for one in scene.boots() for record in one.records]
    for disk, image in images.items():
        assert image.name.startswith(f"{guest.name}-{disk}.")
        held = guest.records_on("b", disk)
        assert held.boots == boot
        assert held.lost(acknowledged) == []
        assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
    assert {record.mode for record in report.status.verify} == {"same-volume"}
    assert leftovers(scene.stage, guest, running.migration, allowed={*images.values()}) == []
    assert notes(scene, running) == []


def notes(scene: Scene, running: Running) -> list[str]:
    """What the migration has left on the shared storage."""
    shared = scene.stage.lab.pool_path("a", "shared")
    return [path.name for path in shared.iterdir() if running.migration in path.name]


def test_disks_change_hands(scene: Scene) -> None:
    scene.boot("qcow2", "raw", pool="shared")
    with DiskWatch(scene.guest.disk_paths("a").values()) as watch:
        running = scene.migrate("dual-attach", **SHARED)
        report = scene.confirm(running)
    completed(scene, running, report)
    watch.assert_one_writer()
    taken = report.status.outage
    assert taken is not None
    assert taken.stopped_at is not None
    assert taken.started_at is not None
    assert taken.stop_requested_at < taken.stopped_at < taken.started_at


def test_rollback_after_the_target_has_written_keeps_all(scene: Scene) -> None:
    scene.boot("qcow2", pool="shared", autostart=True)
    with DiskWatch(scene.guest.disk_paths("a").values()) as watch:
        running = scene.migrate("dual-attach", **SHARED)
        running.phase(Phase.CONFIRM)
        scene.wait_records(2, 10)
        running.say("rollback", reason="the new site is slow")
        report = running.report()
    scene.untouched(running, report, boots=3)
    watch.assert_one_writer()
    written_at_target = scene.boots()[1]
    assert written_at_target.records[-1].kind == "final"
    assert report.source_restored is True
    assert scene.autostart()
    assert notes(scene, running) == []


@pytest.mark.slow
def test_a_target_that_does_not_come_up_gives_the_disks_back(scene: Scene) -> None:
    scene.boot("qcow2", pool="shared")
    never = {"checks": [{"kind": "console", "pattern": "never printed"}], "timeout_s": 5.0, "on_failure": "rollback"}
    running = scene.migrate("dual-attach", health=never, **SHARED)
    scene.untouched(running, running.report(), boots=3)


@pytest.mark.slow
def test_started_by_hand_at_every_moment(scene: Scene) -> None:
    """The operator keeps trying to start the source all the time."""
    scene.boot("qcow2", pool="shared")
    with (
        DiskWatch(scene.guest.disk_paths("a").values()) as watch,
        watch.starting_by_hand(scene.stage, scene.guest.name),
    ):
        running = scene.migrate("dual-attach", **SHARED)
        held = running.until(
            lambda now: now.phase in {Phase.CONFIRM, Phase.ATTENTION}, "an end", timeout_s=180, held=True
        )
    watch.assert_one_writer()
    if held.phase is Phase.ATTENTION:  # he was quicker: the source kept its disks
        running.say("resume")
    report = scene.confirm(running)
    assert report.outcome == "completed"
    watch.assert_one_writer()


ACTS = [
    "precheck.run", "handover.look", "compute.request_stop", "compute.wait_off", "handover.release", "handover.adopt",
    "handover.define", "compute.start", "compute.resume", "health.check", "handover.verify",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True], ids=["confirm", "rollback"])
@pytest.mark.timeout(900)
def test_worker_killed_at_every_boundary(scene: Scene, *, back: bool) -> None:
    """Each act, and each undo, meets the death of its worker once, shortly after it began."""
    chance = random.Random(7)
    scene.boot("qcow2", pool="shared")
    with DiskWatch(scene.guest.disk_paths("a").values()) as watch:
        running = scene.migrate("dual-attach", **SHARED)
        for act in ACTS:
            if not seen_pending(running, act):
                continue
            time.sleep(chance.random() * 0.1)
            scene.installation.replace_worker()
        running.phase(Phase.CONFIRM, timeout_s=300)
        scene.wait_records(2, 5)
        running.say("rollback" if back else "confirm")
        for act in ("handover.reclaim", "compute.restore_source") if back else ("handover.forget_source",):
            if seen_pending(running, act):
                scene.installation.replace_worker()
        report = running.report(timeout_s=300)
    watch.assert_one_writer()
    if back:
        scene.untouched(running, report, boots=3)
    else:
        completed(scene, running, report)


def seen_pending(running: Running, act: str, *, timeout_s: float = 60.0) -> bool:
    """Wait until this act is with a worker, or is over already."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        history = running.installation.run(running.handle.fetch_history())
        begun = [
            event.activity_task_scheduled_event_attributes.activity_type.name
            for event in history.events
            if event.HasField("activity_task_scheduled_event_attributes")
        ]
        if any(pending.activity_type.name == act for pending in running.pending()):
            return True
        if act in begun:
            return False
        if not running.handle or history.events[-1].HasField("workflow_execution_completed_event_attributes"):
            return False
        time.sleep(0.02)
    raise AssertionError(f"{act} was never begun")


def test_the_watch_sees_two_writers(scene: Scene) -> None:
    """The check can fail: a second QEMU without locks is seen."""
    scene.boot("raw", pool="shared")
    (image,) = scene.guest.disk_paths("a").values()
    with DiskWatch([image]) as watch:
        command = [
            "qemu-system-x86_64", "-machine", "none", "-display", "none", "-S",
            "-blockdev", f"driver=file,node-name=second,filename={image},locking=off",
        ]  # fmt: skip
        second = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            watch.wait_for(lambda seen: any(len(pids) > 1 for pids in seen.values()))
        finally:
            second.kill()
            second.wait()
    with pytest.raises(AssertionError, match="two"):
        watch.assert_one_writer()


def test_definitions_are_read(scene: Scene) -> None:
    """After a handover the source's shell can stay: it has no disks, and says who has them."""
    scene.boot("qcow2", pool="shared")
    running = scene.migrate("dual-attach", forget_source=False, **SHARED)
    report = scene.confirm(running)
    assert report.outcome == "completed"
    assert "whimbrel-has-taken-this-disk" in definition(scene.stage, scene.guest.name)
    assert not with_domain(scene.stage, "a", scene.guest.name, lambda domain: domain.isActive())
