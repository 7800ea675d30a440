"""A running guest changes clouds over one Ceph pool, with Temporal and a worker process."""

from __future__ import annotations

import random
import time

import pytest

from tests.e2e.test_e2e_dual_attach import seen_pending
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


def test_disks_change_hands(scene: Scene) -> None:
    scene.boot()
    before = scene.pool_bytes_written()
    running = scene.migrate()
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
