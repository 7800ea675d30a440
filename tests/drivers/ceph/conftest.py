from __future__ import annotations

from collections.abc import Iterator

import pytest

from drivers.ceph import open_rbd
from labs.openstack import OpenStackLab
from tests.drivers.ceph.scratch import ScratchImage, scratch_image
from whimbrel.dataplane import register_opener

register_opener("rbd", open_rbd)


@pytest.fixture
def image(openstack_lab: OpenStackLab) -> Iterator[ScratchImage]:
    with scratch_image(openstack_lab.cloud("a")) as made:
        yield made
