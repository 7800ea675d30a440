"""Somebody takes the room in the target cloud after the prechecks of a wave have seen it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from labs.openstack.furnish import COMPUTE_QUOTA
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e.running import Running
from tests.e2e_openstack.neighbour import Neighbour
from tests.e2e_openstack.only_prechecks import only_prechecks, wait_prechecked
from tests.e2e_openstack.scene import Scene, SceneMaker
from whimbrel.config.plan import together
from whimbrel.model.progress import MigrationStatus, Phase, Trouble

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow]
VMS = 3
PROBES = VMS
"""Each precheck makes a small volume for a moment, and all run at once."""
MANUAL = {"cutover": "manual", "min_interval_s": 0.5, "max_interval_s": 2.0}


@pytest.fixture
def neighbour(installation: Installation) -> Iterator[Neighbour]:
    """Of the target cloud."""
    assert isinstance(installation.stage, OpenStackStage)
    with Neighbour(installation.stage.openstack.cloud("b")) as made:
        yield made


@pytest.mark.timeout(1500)
def test_room_for_one_of_a_wave_is_left(
    new_scene: SceneMaker, installation: Installation, neighbour: Neighbour
) -> None:
    """It goes through; the others hold with their guests untouched, and complete once there is room again."""
    scenes = [new_scene() for _ in range(VMS)]
    for scene in scenes:
        scene.boot()
    limit = neighbour.used("volumes") + VMS + PROBES
    neighbour.limit_volumes(volumes=limit)
    plans = together([scene.plan() for scene in scenes])
    with only_prechecks(installation):
        wave = [(scene, scene.start(plan)) for scene, plan in zip(scenes, plans, strict=True)]
        wait_prechecked([running for _, running in wave])
        neighbour.take_volumes(limit, leaving=1)
    ended = [(scene, running, _ends(running)) for scene, running in wave]
    ((first, through),) = [(scene, running) for scene, running, now in ended if now.phase is Phase.CONFIRM]
    held = [(scene, running) for scene, running, now in ended if now.phase is Phase.ATTENTION]
    assert len(held) == VMS - 1
    for scene, running in held:
        _asks_for_quota(running.status().trouble, "prepare")
        _writes_on(scene)
    running = held[0][1]
    before = running.status().trouble
    assert before is not None
    running.say("resume")
    again = running.until(lambda now: now.trouble is not None and now.trouble.since > before.since, "held", held=True)
    _asks_for_quota(again.trouble, "prepare")
    first.moved(through, first.confirm(through))
    _remove(first)
    neighbour.leave()
    for scene, running in held:
        running.say("resume")
        scene.moved(running, scene.confirm(running, timeout_s=400))
        _remove(scene)


@pytest.mark.timeout(700)
@pytest.mark.parametrize("short", ["instances", "cores"])
def test_the_room_for_the_server_is_taken_while_the_source_stops(
    scene: Scene, neighbour: Neighbour, short: str
) -> None:
    """The last precheck has seen it. The source runs again with all that it wrote; only what changed is sent anew."""
    scene.boot()
    running = scene.migrate(rounds=MANUAL)
    running.rounds(2, timeout_s=240)
    running.say("cutover")
    running.step("stop the source", timeout_s=120)
    neighbour.limit_compute(**{short: 0})
    now = running.until(lambda now: now.trouble is not None, "the cutover is taken back", timeout_s=240)
    assert now.phase is Phase.ROUNDS
    _asks_for_quota(now.trouble, "cutover")
    assert now.outage is None
    assert not scene.target.exists(scene.name)
    scene.wait_records(2, 3)
    _writes_on(scene)
    running.rounds(now.rounds_done + 1)
    neighbour.limit_compute(**COMPUTE_QUOTA)
    running.say("cutover")
    report = scene.confirm(running, timeout_s=300)
    scene.moved(running, report, boot=3)
    baseline, later = report.status.rounds[0], report.status.rounds[1:]
    assert all(each.kind in {"delta", "final"} for each in later)
    assert sum(each.sent_bytes for each in later) < baseline.sent_bytes


def _ends(running: Running) -> MigrationStatus:
    ends = {Phase.CONFIRM, Phase.ATTENTION}
    return running.until(lambda now: now.phase in ends, "confirm or held", timeout_s=500, held=True)


def _asks_for_quota(trouble: Trouble | None, step: str) -> None:
    assert trouble is not None
    assert (trouble.step, trouble.code) == (step, "QuotaExceeded")
    assert re.search("quota|limit", trouble.message, re.IGNORECASE), trouble.message
    assert "raise the project's quota" in trouble.action
    assert ("resume" if step == "prepare" else "cutover") in trouble.choices


def _writes_on(scene: Scene) -> None:
    assert scene.source.running(scene.name)
    seen = scene.boots()[-1]
    scene.wait_records(seen.number, len(seen.records) + 3)


def _remove(scene: Scene) -> None:
    """Its traces are no longer in the way of the next one's search for leftovers."""
    for site in (scene.source, scene.target):
        site.remove(scene.name)
