"""The storage of the target cloud becomes full in the middle of a migration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from labs.openstack.fullness import until_room_is_known
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e.running import Running
from tests.e2e_openstack.images import MIB
from tests.e2e_openstack.neighbour import Neighbour
from tests.e2e_openstack.nova_site import NovaSite, until
from tests.e2e_openstack.only_prechecks import only_prechecks, wait_prechecked
from tests.e2e_openstack.scene import Scene
from whimbrel.model.progress import Phase, Trouble

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(700)]
SLOW_BYTES_PER_S = 2e6
DATA_MIB = 64
COPIED = 12 * MIB
"""Before the storage is full; a good part of the data is still to come."""


@pytest.fixture
def neighbour(installation: Installation) -> Iterator[Neighbour]:
    """Of the target cloud."""
    assert isinstance(installation.stage, OpenStackStage)
    with Neighbour(installation.stage.openstack.cloud("b")) as made:
        yield made
    until_room_is_known(installation.stage.openstack)


@pytest.mark.parametrize("whole", [False, True], ids=["quota-of-the-pool", "whole-cluster"])
def test_it_is_full_in_the_baseline(scene: Scene, neighbour: Neighbour, *, whole: bool) -> None:
    """The operator is told; with room again ``resume`` copies what is missing."""
    running = _copying(scene)
    with neighbour.full_cluster() if whole else neighbour.full_pool():
        now = running.phase(Phase.ATTENTION, timeout_s=120)
        _tells(now.trouble, "full" if whole else "quota")
        if not whole:  # in the same cluster the guest waits as well, and with it who asks for its image
            _writes_on(scene)
            before = now.trouble
            running.say("resume")
            again = running.until(
                lambda now: now.trouble is not None and before is not None and now.trouble.since > before.since,
                "held again",
                held=True,
                timeout_s=120,
            )
            _tells(again.trouble, "quota")
    _writes_on(scene)
    running.say("set_bandwidth")
    running.say("resume")
    report = scene.confirm(running, timeout_s=300)
    scene.moved(running, report)
    assert report.status.rounds[0].sent_bytes < DATA_MIB * MIB, "what was copied before is sent again"


def test_it_is_given_up_while_the_pool_is_full(scene: Scene, neighbour: Neighbour) -> None:
    """It is full of what was copied, and Cinder cannot delete in a full pool: the driver frees it first."""
    running = _copying(scene)
    with neighbour.limited_pool(2 * MIB):
        now = running.phase(Phase.ATTENTION, timeout_s=120)
        _tells(now.trouble, "quota")
        running.say("abort")
        report = running.report(timeout_s=240)
    scene.untouched(running, report)


def test_it_is_full_before_the_volumes_are_made(scene: Scene, installation: Installation, neighbour: Neighbour) -> None:
    """Cinder leaves a volume in state error; with room again another one is made in its place."""
    scene.boot()
    with ExitStack() as full:
        with only_prechecks(installation):
            running = scene.migrate()
            wait_prechecked([running])
            full.enter_context(neighbour.full_pool())
            until(lambda: neighbour.free_gib() < 1, "Cinder knows that the pool is full")
        now = running.phase(Phase.ATTENTION, timeout_s=120)
        assert now.trouble is not None
        assert (now.trouble.step, now.trouble.code) == ("prepare", "QuotaExceeded")
        _writes_on(scene)
    until(lambda: neighbour.free_gib() > 1, "Cinder knows that there is room")
    running.say("resume")
    scene.moved(running, scene.confirm(running, timeout_s=300))


def _copying(scene: Scene) -> Running:
    """A migration in the middle of its baseline."""
    scene.boot(data_mib=DATA_MIB)
    running = scene.migrate(bandwidth_bytes_per_s=SLOW_BYTES_PER_S)
    running.activity("copy.disk", timeout_s=180)
    until(lambda: _arrived(scene) > COPIED, f"{COPIED >> 20} MiB are copied")
    return running


def _arrived(scene: Scene) -> int:
    """What the objects of all images named after the migrated VM's volumes hold."""
    assert isinstance(scene.target, NovaSite)
    site = scene.target
    ours = [one for one in site.api.block_storage.volumes() if (one.name or "").startswith(scene.name)]
    told = [site.rbd("du", "--format", "json", "/".join(site.image(one))) for one in ours]
    return sum(int(image["used_size"]) for one in told for image in dict(one).get("images", []))


def _tells(trouble: Trouble | None, word: str) -> None:
    assert trouble is not None
    assert (trouble.step, trouble.code) == ("baseline copy", "QuotaExceeded")
    assert word in trouble.message
    assert "then resume (or cutover again): what was copied is kept" in trouble.action
    assert "resume" in trouble.choices


def _writes_on(scene: Scene) -> None:
    assert scene.source.running(scene.name)
    seen = scene.boots()[-1]
    scene.wait_records(seen.number, len(seen.records) + 3)
