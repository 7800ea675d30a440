"""Fixtures of the libvirt driver's tests on the KVM lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from labs.kvm import KvmLab
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.model import naming


@pytest.fixture
def make_harness(kvm_lab: KvmLab) -> Iterator[Callable[..., LibvirtHarness]]:
    """Return ``make(cloud="a", **options of LibvirtCloud)``; everything made through them is removed afterwards."""
    made: list[LibvirtHarness] = []

    def make(cloud: str = "a", **options: Any) -> LibvirtHarness:
        harness = LibvirtHarness(kvm_lab, cloud, **options)
        made.append(harness)
        return harness

    yield make
    for harness in made:
        harness.end()


@pytest.fixture
def harness(make_harness: Callable[..., LibvirtHarness]) -> LibvirtHarness:
    """A corner of cloud "a", reached over unix sockets."""
    return make_harness()


@pytest.fixture
def migration(request: pytest.FixtureRequest) -> str:
    """A migration id of the real form, its own for every test."""
    return naming.migration_id("libvirt-tests", request.node.nodeid)
