"""An RBD image passes the block suite on a real pool, with the usual objects and with small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract.suites.block_device import BlockDeviceContract, Make
from tests.contract.test_blockdevice_contract import maker
from tests.drivers.ceph.scratch import ScratchImage

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]


class TestRbdDevice(BlockDeviceContract):
    @pytest.fixture
    def make(self, image: ScratchImage) -> Iterator[Make]:
        with ExitStack() as opened:
            yield maker(opened, lambda writable: image.endpoint(writable=writable), image.fill)


class TestRbdDeviceWithoutFastDiff(BlockDeviceContract):
    """Layering and the lock only: no object map that could answer."""

    @pytest.fixture
    def make(self, image: ScratchImage) -> Iterator[Make]:
        def fill(content: bytes) -> None:
            image.fill(content)
            image.rbd("feature", "disable", image.spec, "deep-flatten")
            image.rbd("feature", "disable", image.spec, "fast-diff", "object-map")

        with ExitStack() as opened:
            yield maker(opened, lambda writable: image.endpoint(writable=writable), fill)
