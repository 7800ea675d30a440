"""What librbd tells of changes between snapshots is never less than what was written, and close to it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from drivers.ceph import open_rbd
from drivers.ceph.device import RbdDevice
from tests.contract.blockio import covers, read_device
from tests.drivers.ceph.scratch import ScratchImage
from whimbrel.errors import AuthFailed, BaseLost, InvalidPlan, NotFound, PermissionDenied
from whimbrel.model.endpoint import RbdEndpoint
from whimbrel.model.extent import Extent, total_bytes

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]

MIB = 1 << 20
OBJECT = 4 * MIB
SIZE = 24 * MIB


def changed(image: ScratchImage, snapshot: str | None, since: str) -> list[Extent]:
    device = open_rbd(image.endpoint(snapshot=snapshot, since=since))
    try:
        return list(device.changed())
    finally:
        device.close()


def do(image: ScratchImage, *acts: tuple[str, int, int]) -> None:
    """Let the driver write, zero, or (as a guest may) discard."""
    device = open_rbd(image.endpoint(writable=True))
    lane = device.lane()
    for act, offset, length in acts:
        if act == "write":
            lane.submit_write(offset, memoryview(random.Random(offset).randbytes(length)))
            lane.reap()
        elif act == "zero":
            lane.submit_zero(offset, length)
            lane.reap()
        else:
            with device.using() as opened:
                opened.discard(offset, length)
    lane.flush()
    device.close()


def apply(content: bytearray, device: RbdDevice, told: list[Extent]) -> None:
    for extent in told:
        data = bytes(extent.length) if extent.zero else read_device(device, extent.start, extent.length)
        content[extent.start : extent.end] = data


@pytest.mark.parametrize("features", ["fast-diff", "plain"])
@pytest.mark.parametrize("seed", range(3))
def test_base_and_changes_make_the_snapshot(image: ScratchImage, seed: int, features: str) -> None:
    chance = random.Random(seed)
    words = ("--image-feature", "layering,exclusive-lock") if features == "plain" else ()
    image.create(SIZE, *words)
    do(image, *(("write", chance.randrange(SIZE - OBJECT), chance.randrange(1, OBJECT)) for _ in range(5)))
    image.snap("s0")
    base = bytearray(image.read("s0"))
    first = bytearray(base)
    for turn in range(1, 4):
        acts = []
        for _ in range(6):
            length = chance.choice([1, 512, 4096, 65536, 70_000, OBJECT, OBJECT + 4096])
            offset = chance.randrange(SIZE - length)
            if chance.random() < 0.5:
                offset -= offset % 65536
            acts.append((chance.choice(["write", "write", "zero", "discard"]), offset, length))
        do(image, *acts)
        image.snap(f"s{turn}")
        device = open_rbd(image.endpoint(snapshot=f"s{turn}", since=f"s{turn - 1}"))
        told = list(device.changed())
        assert all(one.end <= two.start for one, two in pairwise(told))
        apply(base, device, told)
        device.close()
        assert bytes(base) == image.read(f"s{turn}")
    union = open_rbd(image.endpoint(snapshot="s3", since="s0"))
    apply(first, union, list(union.changed()))
    union.close()
    assert first == base


def test_changes_are_exact_and_zeros_are_marked(image: ScratchImage) -> None:
    image.create(SIZE)
    do(image, ("write", 0, SIZE))
    image.snap("s0")
    do(image, ("write", OBJECT, 4096), ("write", 2 * OBJECT + 8192, 65536), ("discard", 3 * OBJECT, OBJECT))
    do(image, ("zero", 4 * OBJECT, OBJECT))
    image.snap("s1")
    do(image, ("write", 5 * OBJECT, OBJECT))
    assert changed(image, "s1", "s0") == [
        Extent(OBJECT, 4096),
        Extent(2 * OBJECT + 8192, 65536),
        Extent(3 * OBJECT, 2 * OBJECT, zero=True),
    ]
    assert total_bytes(changed(image, None, "s1")) == OBJECT


def test_a_snapshot_stays_as_it_was(image: ScratchImage) -> None:
    image.fill(b"before" * 1000)
    image.snap("s0")
    device = open_rbd(image.endpoint(snapshot="s0"))
    do(image, ("write", 0, 4096))
    assert device.read_only
    assert read_device(device) == b"before" * 1000
    device.close()


def test_allocation_of_a_clone_counts_its_parent(image: ScratchImage, openstack_lab: object) -> None:
    image.create(SIZE)
    do(image, ("write", OBJECT, 4096))
    image.snap("s0")
    image.rbd("snap", "protect", f"{image.spec}@s0")
    image.rbd("clone", f"{image.spec}@s0", f"{image.spec}-clone")
    try:
        endpoint = image.endpoint().model_copy(update={"image": f"{image.name}-clone"})
        device = open_rbd(endpoint)
        data = [extent for extent in device.extents() if not extent.zero]
        assert covers(data, OBJECT, 4096)
        assert read_device(device)[OBJECT : OBJECT + 4096] == random.Random(OBJECT).randbytes(4096)
        device.close()
    finally:
        image.rbd("rm", "--no-progress", f"{image.spec}-clone")
        image.rbd("snap", "unprotect", f"{image.spec}@s0")


def test_zeroing_gives_the_space_back_and_writing_zeros_on_wish_does_not(image: ScratchImage) -> None:
    image.create(SIZE)
    do(image, ("write", 0, 2 * OBJECT))
    assert image.allocated() == 2 * OBJECT
    do(image, ("zero", 0, 2 * OBJECT))
    assert image.allocated() == 0
    device = open_rbd(image.endpoint(writable=True))
    lane = device.lane()
    lane.submit_zero(0, OBJECT, may_punch=False)
    lane.reap()
    device.close()
    assert image.allocated() == OBJECT
    assert not any(image.read())


def test_a_base_that_is_gone_is_base_lost(image: ScratchImage) -> None:
    image.create(SIZE)
    image.snap("s0")
    image.snap("s1")
    with pytest.raises(BaseLost):
        open_rbd(image.endpoint(snapshot="s1", since="never"))
    with pytest.raises(BaseLost):
        open_rbd(image.endpoint(snapshot="s0", since="s1"))
    device = open_rbd(image.endpoint(snapshot="s1", since="s0"))
    image.rbd("snap", "rm", "--no-progress", f"{image.spec}@s0")
    with pytest.raises(BaseLost):
        list(device.changed())
    device.close()


def test_what_is_missing_is_named(image: ScratchImage) -> None:
    image.create(SIZE)
    good = image.endpoint()
    wrong: list[tuple[dict[str, object], type[Exception]]] = [
        ({"image": "no-such-image"}, NotFound),
        ({"pool": "no-such-pool"}, NotFound),
        ({"snapshot": "no-such-snapshot"}, NotFound),
        ({"conf": "/nonexistent/ceph.conf"}, NotFound),
        ({"user": "nobody"}, AuthFailed),
        ({"snapshot": "s0", "writable": True}, InvalidPlan),
    ]
    for change, expected in wrong:
        with pytest.raises(expected):
            open_rbd(good.model_copy(update=change))


def test_another_clouds_pool_is_refused(image: ScratchImage) -> None:
    endpoint: RbdEndpoint = image.endpoint().model_copy(update={"pool": "volumes-b"})
    with pytest.raises(PermissionDenied):
        open_rbd(endpoint)
