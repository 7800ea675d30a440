"""A pool or a cluster that is full: what needs room is refused at once, what needs none goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from drivers.ceph import RbdImages, open_rbd
from labs.openstack import OpenStackLab
from labs.openstack.fullness import full_cluster, full_pool, until_room_is_known
from labs.openstack.layout import OpenStackLayout
from tests.contract.blockio import read_device, write_device
from tests.drivers.ceph.scratch import ScratchImage
from whimbrel.errors import QuotaExceeded

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(300)]
MIB = 1 << 20
AT_ONCE_S = 20.0
"""librados by itself waits without an end, and with the driver's own limit for 60 s."""
Full = Callable[[OpenStackLayout, str], AbstractContextManager[None]]
FULL = pytest.mark.parametrize(
    ("full", "says"), [(full_pool, "quota"), (full_cluster, "the pool is full")], ids=["quota", "cluster"]
)


@pytest.fixture(scope="module", autouse=True)
def _the_next_test_finds_room(openstack_lab: OpenStackLab) -> Iterator[None]:
    yield
    until_room_is_known(openstack_lab)


@FULL
def test_a_write_is_refused_and_the_session_can_be_ended(
    openstack_lab: OpenStackLab, image: ScratchImage, full: Full, says: str
) -> None:
    cloud = openstack_lab.cloud("a")
    images = RbdImages(conf=str(cloud.ceph_conf), user=cloud.ceph_user)
    where = (image.pool, image.name)
    image.create(64 * MIB)
    images.begin_session(*where, "one")
    device = open_rbd(image.endpoint(session="one", writable=True))
    write_device(device, 0, b"before" * 1000)
    with full(openstack_lab.layout, image.pool):
        began = time.monotonic()
        with pytest.raises(QuotaExceeded, match=says) as refused:
            write_device(device, 32 * MIB, b"x" * MIB)
        assert "what was copied is kept" in refused.value.action
        device.close()
        late = open_rbd(image.endpoint(session="one", writable=True))
        assert read_device(late, 0, 6000) == b"before" * 1000
        late.close()
        images.end_session(*where, "one")
        assert images.session(*where) is None
        assert time.monotonic() - began < AT_ONCE_S
        image.remove()


@FULL
def test_with_room_again_the_same_write_succeeds(
    openstack_lab: OpenStackLab, image: ScratchImage, full: Full, says: str
) -> None:
    image.create(64 * MIB)
    device = open_rbd(image.endpoint(writable=True))
    with full(openstack_lab.layout, image.pool), pytest.raises(QuotaExceeded, match=says):
        write_device(device, 32 * MIB, b"x" * MIB)
    device.close()
    device = open_rbd(image.endpoint(writable=True))
    write_device(device, 32 * MIB, b"y" * MIB)
    assert read_device(device, 32 * MIB, MIB) == b"y" * MIB
    device.close()


@FULL
def test_the_try_of_the_precheck_tells(openstack_lab: OpenStackLab, full: Full, says: str) -> None:
    cloud = openstack_lab.cloud("a")
    images = RbdImages(conf=str(cloud.ceph_conf), user=cloud.ceph_user)
    images.reach(cloud.pool)
    with full(openstack_lab.layout, cloud.pool), pytest.raises(QuotaExceeded, match=says):
        images.reach(cloud.pool)
