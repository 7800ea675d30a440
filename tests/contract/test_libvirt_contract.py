"""The libvirt driver passes the contract suites on a real libvirtd and QEMU, with both formats and transports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from labs.kvm import KvmLab
from tests.contract.harness import Harness
from tests.contract.libvirt_harness import LibvirtHarness
from tests.contract.suites import (
    CloudFactsContract,
    ComputeContract,
    FrozenWriterContract,
    GuestContract,
    NetworkContract,
    PointInTimeContract,
    ServingContract,
    ShadowContract,
    TrackedPointContract,
    TrackedShadowContract,
    UntrackedPointContract,
    VolumeContract,
)
from tests.contract.suites.suite import ContractSuite

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


class _Libvirt(ContractSuite):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def harness(self, kvm_lab: KvmLab) -> Iterator[Harness]:
        harness = LibvirtHarness(kvm_lab, **self.options)
        yield harness
        harness.end()


class TestLibvirtCompute(_Libvirt, ComputeContract):
    pass


class TestLibvirtVolume(_Libvirt, VolumeContract):
    pass


class TestLibvirtVolumeRaw(_Libvirt, VolumeContract):
    disk_format = "raw"


class TestLibvirtFrozenWriter(_Libvirt, FrozenWriterContract):
    pass


class TestLibvirtFrozenWriterRaw(_Libvirt, FrozenWriterContract):
    disk_format = "raw"


class TestLibvirtFrozenWriterOverTcp(_Libvirt, FrozenWriterContract):
    options: ClassVar[dict[str, Any]] = {"transport": "tcp", "nbd_host": "127.0.0.1"}


class TestLibvirtPoint(_Libvirt, PointInTimeContract):
    pass


class TestLibvirtPointRaw(_Libvirt, PointInTimeContract):
    disk_format = "raw"


class TestLibvirtPointOverTcp(_Libvirt, PointInTimeContract):
    options: ClassVar[dict[str, Any]] = {"transport": "tcp", "nbd_host": "127.0.0.1"}


class TestLibvirtTrackedPoint(_Libvirt, TrackedPointContract):
    pass


class TestLibvirtUntrackedPoint(_Libvirt, UntrackedPointContract):
    pass


class TestLibvirtServing(_Libvirt, ServingContract):
    pass


class TestLibvirtShadow(_Libvirt, TrackedShadowContract):
    pass


@pytest.mark.slow  # make test has the raw form in test_libvirt_serving_lab.py and end to end
class TestLibvirtShadowRaw(_Libvirt, ShadowContract):
    disk_format = "raw"


class TestLibvirtNetwork(_Libvirt, NetworkContract):
    pass


class TestLibvirtGuest(_Libvirt, GuestContract):
    pass


class TestLibvirtCloudFacts(_Libvirt, CloudFactsContract):
    pass
