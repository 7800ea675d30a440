"""A running guest changes clouds over one Ceph pool, with Temporal and a worker process."""

from __future__ import annotations

import random
import time

import pytest

from labs.openstack_stage import name_in_plans
from tests.e2e.test_e2e_dual_attach import seen_pending
from tests.e2e_handover.by_hand import Running as RunsWatch
from tests.e2e_handover.by_hand import Starting
from tests.e2e_handover.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(600)]
NOT_A_COPY = 24 << 20
"""What the guest writes by itself meanwhile is far less, a copy far more."""
COUNTERS_LAG_S = 8.0
ACTS = [
    "precheck.run", "handover.look", "compute.request_stop", "compute.wait_off", "handover.release", "handover.adopt",
    "handover.define", "compute.start", "health.check", "handover.verify",
]  # fmt: skip
PAIRS = {"source": name_in_plans("a", pair=True), "target": name_in_plans("b", pair=True)}
"""Plain members, and an administrator's entry of another project beside each."""


@pytest.mark.parametrize("pair", [False, True], ids=["admin-in-the-project", "admin-apart"])
def test_disks_change_hands(scene: Scene, *, pair: bool) -> None:
    scene.boot()
    before = scene.pool_bytes_written()
    running = scene.migrate(**(PAIRS if pair else {}))
    running.phase(Phase.CONFIRM, timeout_s=240)
    scene.console("a")
    scene.wait_records("b", 2, 3)
    time.sleep(COUNTERS_LAG_S)
    written = scene.pool_bytes_written() - before
    running.say("confirm")
    report = running.report()
    taken = report.status.outage
    assert taken is not None
    print(f"{written >> 10} KiB written to the pool; {taken}")  # noqa: T201
    assert written < NOT_A_COPY
    scene.moved(report)


def test_rollback_after_the_target_has_written(scene: Scene) -> None:
    scene.boot()
    running = scene.migrate()
    running.phase(Phase.CONFIRM, timeout_s=240)
    scene.console("a")
    scene.wait_records("b", 2, 5)
    running.say("rollback", reason="the new site is slow")
    scene.untouched(running.report(timeout_s=180), boots=3)


@pytest.mark.slow
@pytest.mark.parametrize("unlocks", [False, True], ids=["starts", "unlocks-and-starts"])
@pytest.mark.timeout(900)
def test_started_by_hand_on_both_sides_all_the_time(scene: Scene, *, unlocks: bool) -> None:
    """There and back: never two that run on the image, and nothing of what either wrote is lost."""
    scene.boot()
    clouds = [scene.lab.cloud(name) for name in ("a", "b")]

    def watchers() -> tuple[str, ...]:
        return scene.shared.get("shared", scene.image).watchers

    with (
        RunsWatch(scene.lab, scene.name, watchers) as watch,
        Starting(clouds[0], scene.name, unlocks=unlocks) as here,
        Starting(clouds[1], scene.name, unlocks=unlocks) as there,
    ):
        running = scene.migrate()
        ends = {Phase.CONFIRM, Phase.ATTENTION}
        now = running.until(lambda now: now.phase in ends, "an end", timeout_s=300, held=True)
        while now.phase is Phase.ATTENTION:  # quicker than the lock: the source kept its disks
            here.resting.set()
            running.say("resume")
            scene.wait_released(timeout_s=240)
            here.resting.clear()
            now = running.until(lambda now: now.phase in ends, "an end", timeout_s=300, held=True)
        moved = scene.wait_later_boot("b", 1)
        running.say("rollback", reason="enough")
        report = running.report(timeout_s=300)
    print(f"{here.tried=} {there.tried=} {watch.looks=}")  # noqa: T201
    assert watch.doubles == []
    assert watch.looks > 20
    assert watch.seen == {"a", "b"}
    assert here.tried.get("start: refused" if unlocks else "start: locked", 0) > 0
    assert there.tried
    assert report.outcome == "rolled_back", report.reason
    scene.wait_later_boot("a", moved)
    scene.stop("a")
    scene.whole(scene.boots())


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True], ids=["confirm", "rollback"])
@pytest.mark.timeout(1200)
def test_worker_killed_at_every_boundary(scene: Scene, *, back: bool) -> None:
    """Each act, and each undo, meets the death of its worker once, shortly after it began."""
    chance = random.Random(7)
    scene.boot()
    running = scene.migrate()
    for act in ACTS:
        if seen_pending(running, act):
            time.sleep(chance.random() * 1.0)
            scene.installation.replace_worker()
    running.phase(Phase.CONFIRM, timeout_s=300)
    scene.console("a")
    scene.wait_records("b", 2, 2)
    running.say("rollback" if back else "confirm")
    undoes = ("compute.ensure_absent", "handover.abandon", "handover.reclaim", "compute.restore_source")
    for act in undoes if back else ("handover.forget_source",):
        if seen_pending(running, act):
            time.sleep(chance.random() * 1.0)
            scene.installation.replace_worker()
    report = running.report(timeout_s=300)
    if back:
        scene.untouched(report, boots=3)
    else:
        scene.moved(report)
