"""Sessions on an image: one at a time, adopted by key, and a late writer is shut out for good."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from drivers.ceph import RbdImages, open_rbd
from labs.openstack import OpenStackLab
from tests.contract.blockio import read_device, write_device
from tests.drivers.ceph.scratch import ScratchImage
from whimbrel.errors import Conflict, NotFound, Unavailable, Unsupported, WhimbrelError

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]
SIZE = 2 << 20


@pytest.fixture
def images(openstack_lab: OpenStackLab) -> RbdImages:
    cloud = openstack_lab.cloud("a")
    return RbdImages(conf=str(cloud.ceph_conf), user=cloud.ceph_user)


def test_a_session_is_opened_once_and_closed_for_good(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE)
    where = (image.pool, image.name)
    for _ in range(2):
        images.begin_session(*where, "one")
    assert images.session(*where) == "one"
    with pytest.raises(Conflict):
        images.begin_session(*where, "two")
    images.end_session(*where, "two")
    assert images.session(*where) == "one"
    device = open_rbd(image.endpoint(session="one", writable=True))
    write_device(device, 0, b"in time")
    for _ in range(2):
        images.end_session(*where, "one")
    assert images.session(*where) is None
    with pytest.raises(Unavailable):
        write_device(device, 0, b"too late")
    device.close()
    with pytest.raises(Conflict):
        open_rbd(image.endpoint(session="one"))
    assert image.read()[:8] == b"in time\0"
    assert "whimbrel" not in image.rbd("image-meta", "list", image.spec)


def test_the_newest_writer_of_a_session_shuts_out_the_one_before(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE)
    images.begin_session(image.pool, image.name, "one")
    endpoint = image.endpoint(session="one", writable=True)
    old = open_rbd(endpoint)
    write_device(old, 0, b"old")
    new = open_rbd(endpoint)
    with pytest.raises(WhimbrelError):
        write_device(old, 0, b"late")
    write_device(new, 4096, b"new")
    assert read_device(new, 0, 8) == b"old\0\0\0\0\0"
    old.close()
    new.close()
    images.end_session(image.pool, image.name, "one")


def test_a_killed_workers_image_is_taken_over_at_once(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE)
    images.begin_session(image.pool, image.name, "one")
    endpoint = image.endpoint(session="one", writable=True)
    code = (
        "import sys\nfrom drivers.ceph import open_rbd\nfrom tests.contract.blockio import write_device\n"
        "from whimbrel.model.endpoint import RbdEndpoint\n"
        "device = open_rbd(RbdEndpoint.model_validate_json(sys.argv[1]))\n"
        "write_device(device, 0, b'first')\nprint('written', flush=True)\nsys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, endpoint.model_dump_json()]
    worker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "written\n"
    worker.kill()
    worker.communicate()
    begin = time.monotonic()
    device = open_rbd(endpoint)
    write_device(device, 8, b"second")
    assert time.monotonic() - begin < 20, "a dead client's watch lasts 30 s; it must not be waited for"
    device.close()
    images.end_session(image.pool, image.name, "one")
    assert image.read()[:14] == b"first\0\0\0second"


def test_a_client_that_is_not_ours_is_left_alone(image: ScratchImage, images: RbdImages) -> None:
    """A VM's QEMU, say: neither shut out by a session nor by a writer without one."""
    image.create(SIZE)
    cluster = open_rbd(image.endpoint(writable=True))  # knows nothing of sessions; its name is forgotten below
    write_device(cluster, 0, b"vm")
    for line in image.rbd("image-meta", "list", image.spec).splitlines():
        if line.startswith("whimbrel.client."):
            image.rbd("image-meta", "remove", image.spec, line.split()[0])
    assert len(images.openers(image.pool, image.name)) == 1
    with pytest.raises(Conflict):
        images.begin_session(image.pool, image.name, "one")
    with pytest.raises(Conflict):
        open_rbd(image.endpoint(writable=True))
    with pytest.raises(Conflict):
        images.resize(image.pool, image.name, 2 * SIZE)
    write_device(cluster, 0, b"still")
    cluster.close()
    assert images.openers(image.pool, image.name) == ()
    assert image.read()[:5] == b"still"


def test_a_closed_point_is_read_no_more(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE)
    image.snap("s0")
    where = (image.pool, image.name)
    for _ in range(2):
        images.begin_point(*where, "one")
    images.begin_point(*where, "two")
    assert sorted(images.points(*where)) == ["one", "two"]
    device = open_rbd(image.endpoint(snapshot="s0", session="one"))
    assert read_device(device) == bytes(SIZE)
    device.close()
    for _ in range(2):
        images.end_point(*where, "one")
    assert images.points(*where) == ("two",)
    with pytest.raises(Conflict):
        open_rbd(image.endpoint(snapshot="s0", session="one"))
    images.end_point(*where, "two")
    assert "whimbrel" not in image.rbd("image-meta", "list", image.spec)


def test_without_the_lock_feature_there_is_no_session(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE, "--image-feature", "layering")
    with pytest.raises(Unsupported):
        images.begin_session(image.pool, image.name, "one")


def test_sizes_are_the_real_ones(image: ScratchImage, images: RbdImages) -> None:
    image.create(SIZE)
    where = (image.pool, image.name)
    assert images.sizes([where, (image.pool, "no-such-image")]) == {where: SIZE}
    for _ in range(2):
        images.resize(*where, SIZE + 512)
    assert images.sizes([where]) == {where: SIZE + 512}
    image.snap("s0")
    images.resize(*where, SIZE)
    assert images.snapshots(*where) == {"s0": SIZE + 512}
    with pytest.raises(NotFound):
        images.resize(image.pool, "no-such-image", SIZE)
