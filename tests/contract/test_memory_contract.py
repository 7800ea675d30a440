"""The in-memory cloud passes every contract suite, on both of its formats."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.memory import MemoryCloud
from tests.contract.blockio import apply_changes, changed_of, covers, read_point
from tests.contract.harness import Harness
from tests.contract.memory_harness import MemoryHarness
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
from whimbrel.model.naming import point_key


class _Memory(ContractSuite):
    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        name = f"contract-{uuid.uuid4()}"
        yield MemoryHarness(name)
        MemoryCloud.reset(name)


class TestMemoryCompute(_Memory, ComputeContract):
    pass


class TestMemoryComputeThatFences(_Memory, ComputeContract):
    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        name = f"contract-{uuid.uuid4()}"
        made = MemoryHarness(name)
        made.scenario.set_capabilities(fences=True)
        yield made
        MemoryCloud.reset(name)


class TestMemoryVolume(_Memory, VolumeContract):
    pass


class TestMemoryVolumeRaw(_Memory, VolumeContract):
    disk_format = "raw"


class TestMemoryFrozenWriter(_Memory, FrozenWriterContract):
    pass


class TestMemoryFrozenWriterRaw(_Memory, FrozenWriterContract):
    disk_format = "raw"


class TestMemoryPoint(_Memory, PointInTimeContract):
    pass


class TestMemoryPointRaw(_Memory, PointInTimeContract):
    disk_format = "raw"


class TestMemoryTrackedPoint(_Memory, TrackedPointContract):
    pass


class TestMemoryPointLikeOnSnapshots(_Memory, TrackedPointContract):
    """A cloud whose points are snapshots, which a start of the VM does not end."""

    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        name = f"contract-{uuid.uuid4()}"
        made = MemoryHarness(name)
        made.scenario.set_capabilities(start_paused=False, points_outlive_start=True, announces=True, rests=True)
        yield made
        MemoryCloud.reset(name)


class TestMemoryUntrackedPoint(_Memory, UntrackedPointContract):
    pass


class TestMemoryServing(_Memory, ServingContract):
    pass


class TestMemoryShadow(_Memory, TrackedShadowContract):
    pass


class TestMemoryShadowRaw(_Memory, ShadowContract):
    disk_format = "raw"


class TestMemoryNetwork(_Memory, NetworkContract):
    pass


class TestMemoryGuest(_Memory, GuestContract):
    pass


class TestMemoryCloudFacts(_Memory, CloudFactsContract):
    pass


def test_nothing_is_left_out() -> None:
    assert MemoryHarness.lacks == frozenset()


SMALL = 5 * 65536 + 1234
WRITE = st.tuples(st.integers(0, SMALL - 1), st.binary(min_size=1, max_size=300), st.integers(1, 400)).map(
    lambda drawn: (drawn[0], (drawn[1] * drawn[2])[: SMALL - drawn[0]])
)
ROUND = st.lists(WRITE, max_size=4)


@given(st.lists(ROUND, min_size=1, max_size=5), st.data())
def test_changes_since_any_token_make_the_copy_of_that_time_equal(
    rounds: list[list[tuple[int, bytes]]], data: st.DataObject
) -> None:
    name = f"property-{uuid.uuid4()}"
    harness = MemoryHarness(name)
    ref = harness.make_vm([(SMALL, "qcow2")], running=True)
    points, migration = harness.cloud.points, "feedc0ffee"
    copies: list[bytes] = []
    for serial, writes in enumerate(rounds):
        point = points.open(ref, ["vda"], key=point_key(migration, serial), migration=migration)
        for offset, content in writes:
            harness.guest_write(ref, "vda", offset, content)
        copies.append(read_point(point.disk("vda")))
        points.close(ref, point.key, migration=migration)
    base = data.draw(st.integers(0, len(rounds) - 1), label="base")
    last = points.open(
        ref, ["vda"], key=point_key(migration, 99), since=point_key(migration, base), migration=migration
    )
    changed = changed_of(last.disk("vda"))
    written = [(offset, len(content)) for writes in rounds[base:] for offset, content in writes]
    assert all(covers(changed, offset, length) for offset, length in written)
    grains = {
        grain for offset, length in written for grain in range(offset // 65536, (offset + length - 1) // 65536 + 1)
    }
    assert {grain for extent in changed for grain in range(extent.start // 65536, -(-extent.end // 65536))} == grains
    assert apply_changes(copies[base], last.disk("vda")) == harness.read_disk(ref, "vda")
    MemoryCloud.reset(name)
