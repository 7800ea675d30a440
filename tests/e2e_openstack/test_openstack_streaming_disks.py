"""Mode ``streaming`` into a Nova guest of several disks: each is imported by itself, and all of them are one VM's."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import pytest

from labs.openstack.furnish import VOLUME_QUOTA
from tests.e2e_openstack.images import DATA_OFFSET, MIB
from tests.e2e_openstack.neighbour import Neighbour
from tests.e2e_openstack.nova_site import NovaSite
from tests.e2e_openstack.scene import Scene, Site
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.timeout(420)]
DATA = random.Random(8131).randbytes(16 * MIB)
"""Bytes that no pattern hides."""
SLOW_BYTES_PER_S = 2e6
"""What the guest does not ask for takes longer than it takes to say ``pause``."""


def test_every_disk_arrives_while_its_guest_writes(scene: Scene) -> None:
    """With nothing fetched in the background the guest reads its second disk whole, while it writes to both."""
    scene.boot(data_disks=1, dirty_kib=128, beside=DATA)
    running = scene.migrate("streaming", bandwidth_bytes_per_s=SLOW_BYTES_PER_S)
    running.phase(Phase.HYDRATE, timeout_s=300)
    running.say("pause")
    scene.wait_records(2, 3)
    read = scene.target.command(scene.name, f"hash vdb {DATA_OFFSET} {len(DATA)}")
    assert read == hashlib.sha256(DATA).hexdigest()
    seen = len(scene.boots()[-1].records)
    scene.wait_records(2, seen + 2)
    now = running.status()
    assert (now.phase, now.paused) == (Phase.HYDRATE, True)
    assert isinstance(scene.target, NovaSite)
    marked = {key: "whimbrel_import" in volume.metadata for key, volume in scene.target.volumes(scene.name).items()}
    assert marked == {"vda": True, "vdb": True}
    running.say("set_bandwidth")
    running.say("resume")
    report = scene.confirm(running)
    scene.moved(running, report)
    assert _second_disk(scene, scene.target) == DATA
    features = scene.target.features(scene.name)
    assert {"exclusive-lock", "object-map", "fast-diff"} <= features
    assert "migrating" not in features


@pytest.mark.parametrize("keep_writes", [True, False], ids=["with-writes", "without-writes"])
def test_rollback_after_the_target_has_written_to_both(scene: Scene, keep_writes: bool) -> None:
    scene.boot(data_disks=1, beside=DATA)
    running = scene.migrate("streaming")
    running.phase(Phase.CONFIRM, timeout_s=300)
    scene.wait_records(2, 5)
    running.say("rollback", reason="the new site is slow", drop_writes=not keep_writes)
    report = running.report(timeout_s=240)
    scene.untouched(running, report, boots=3 if keep_writes else 2)
    assert report.source_restored is True
    assert bool(report.writes_kept_bytes) is keep_writes
    assert _second_disk(scene, scene.source) == DATA


def test_a_take_over_that_fails_between_two_disks_leaves_neither_behind(scene: Scene) -> None:
    """Room is left for the first state of one disk only, when both are imported already. The source runs again."""
    assert isinstance(scene.target, NovaSite)
    scene.boot(data_disks=1, beside=DATA)
    with Neighbour(scene.target.handle) as neighbour:
        running = scene.migrate("streaming")
        running.step("stop the source", timeout_s=240)
        neighbour.limit_volumes(snapshots=neighbour.used("snapshots") + 1)
        now = running.phase(Phase.ATTENTION, timeout_s=300)
        assert now.trouble is not None
        assert (now.trouble.step, now.trouble.code) == ("cutover", "QuotaExceeded")
        assert now.outage is None
        assert not scene.target.exists(scene.name)
        pool = scene.target.handle.pool
        volumes = [one for one in scene.target.api.block_storage.volumes() if one.name.startswith(scene.name)]
        images = set(scene.target.rbd("ls", pool, "--format", "json"))
        assert len(volumes) == 2
        assert not any("whimbrel_import" in volume.metadata for volume in volumes)
        assert images.isdisjoint(f"volume-{volume.id}" for volume in volumes)
        assert neighbour.used("snapshots") == 0
        scene.wait_records(2, 3)
        assert scene.source.running(scene.name)
        neighbour.limit_volumes(**VOLUME_QUOTA)
        running.say("resume")
        report = scene.confirm(running)
        scene.moved(running, report, boot=3)
    assert _second_disk(scene, scene.target) == DATA


def _second_disk(scene: Scene, site: Site) -> bytes:
    """What lies where ``DATA`` was put."""
    with tempfile.TemporaryDirectory(prefix="ose2e-") as directory:
        with site.flatten(scene.name, Path(directory))["vdb"].open("rb") as flat:
            flat.seek(DATA_OFFSET)
            return flat.read(len(DATA))
