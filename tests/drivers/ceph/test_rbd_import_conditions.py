"""The hard conditions of an import: what the driver does about each, and what happens where nobody does."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from drivers.ceph import RbdImports, binding, open_rbd
from drivers.ceph.liveimport import CACHE_POLICY
from labs.openstack import OpenStackLab
from tests.contract.blockio import read_device
from tests.drivers.ceph.httpsource import HttpSource, http_source
from tests.drivers.ceph.imports import CONTENT, MIB, OBJECT, SIZE, execute, guest_io, imports_of, patched, prepare
from tests.drivers.ceph.scratch import ScratchImage
from whimbrel.errors import Conflict, NotReady, WhimbrelError
from whimbrel.model.extent import Extent

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]


@pytest.fixture
def imports(openstack_lab: OpenStackLab) -> RbdImports:
    return imports_of(openstack_lab.cloud("a"))


@pytest.fixture
def source() -> Iterator[HttpSource]:
    with http_source(CONTENT) as made:
        yield made


def lost_after_an_error(imports: RbdImports, image: ScratchImage, source: HttpSource) -> tuple[int, int]:
    """Acknowledged writes, and how many of them are not there, when the source gave errors for a while."""
    acknowledged: dict[int, bytes] = {}
    with guest_io(imports, image) as guest:
        assert guest.write(SIZE - 4096, b"x" * 4096)  # until the first flush librbd's cache is careful
        source.failing = True
        for number in range(8):
            offset, data = number * OBJECT + 8192, random.Random(number).randbytes(4096)
            # a flush in time hears of the failed write; one after it does not
            if guest.write(offset, data, pause_s=0.3):
                acknowledged[offset] = data
        source.failing = False
    with guest_io(imports, image) as guest:
        lost = sum(guest.read(offset, 4096) != data for offset, data in acknowledged.items())
    return len(acknowledged), lost


def test_with_our_cache_policy_nothing_acknowledged_is_lost(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    prepare(imports, image, source)
    _, lost = lost_after_an_error(imports, image, source)
    assert lost == 0


def test_with_librbds_own_it_is(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    """Why the policy is set, and why no guest is started where it is not."""
    prepare(imports, image, source)
    image.rbd("config", "image", "remove", image.spec, CACHE_POLICY.removeprefix("conf_"))
    image.snap("s0")
    with pytest.raises(Conflict, match="cache policy"):
        imports.check_usable(image.pool, image.name)
    acknowledged, lost = lost_after_an_error(imports, image, source)
    assert acknowledged
    assert lost == acknowledged


def test_a_source_that_waits_hurts_nobody(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    with guest_io(imports, image) as guest:
        source.hold()
        threading.Timer(5, source.go_on).start()
        began = time.monotonic()
        assert guest.write(8192, b"x" * 4096)
        assert time.monotonic() - began > 4
        assert guest.read(0, OBJECT) == patched(CONTENT, {8192: b"x" * 4096})[:OBJECT]


def test_a_source_that_answers_with_an_error_is_the_guests_error(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    """Why the gateway never does: librbd asks only once."""
    prepare(imports, image, source)
    rbd = binding.load().rbd
    with guest_io(imports, image) as guest:
        source.failing = True
        with pytest.raises(rbd.Error):
            guest.read(OBJECT, 4096)
        source.failing = False
        assert guest.read(OBJECT, 4096) == CONTENT[OBJECT : OBJECT + 4096]


def test_asking_for_allocation_reads_all_and_ends_nothing(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    prepare(imports, image, source)
    image.snap("s0")
    for snapshot in (None, "s0"):
        device = open_rbd(image.endpoint(snapshot=snapshot))
        try:
            assert list(device.extents()) == [Extent(0, SIZE)]
            assert list(device.extents(MIB, 5)) == [Extent(MIB, 5)]
            assert read_device(device, 0, SIZE) == CONTENT
        finally:
            device.close()


def test_librbd_itself_ends_the_process(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    """Why it is not asked: in a process that may end."""
    prepare(imports, image, source)
    program = (
        "import sys; from drivers.ceph import binding; from drivers.ceph.cluster import connect\n"
        "rbd = binding.load().rbd; conf, user, pool, name = sys.argv[1:]\n"
        "image = rbd.Image(connect(conf, user).open_ioctx(pool), name, read_only=True)\n"
        "image.diff_iterate(0, image.size(), None, lambda *_: None)\n"
    )
    words = [sys.executable, "-c", program, imports.conf, imports.user, image.pool, image.name]
    done = subprocess.run(words, capture_output=True, timeout=60, check=False)
    assert done.returncode < 0, "if this passes on a newer librbd, allocation could be asked for"


def test_with_exclusive_lock_a_second_client_stops_the_guest(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    """Why imports have layering alone, and no guest is started on one that has more."""
    prepare(imports, image, source)
    image.rbd("feature", "enable", image.spec, "exclusive-lock")
    image.snap("s0")
    with pytest.raises(Conflict, match="exclusive-lock"):
        imports.check_usable(image.pool, image.name)
    with guest_io(imports, image) as guest:
        assert guest.write(0, b"a" * 4096)
        rbd = binding.load().rbd
        with guest_io(imports, image, rbd_clone_copy_on_read="true") as second:
            second.image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
            assert not guest.write(OBJECT, b"b" * 4096)


def test_without_it_our_own_hands_do_not_disturb_the_guest(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    """The execution, and snapshots, beside a guest that writes all the while."""
    prepare(imports, image, source)
    image.snap("s0")
    writes: dict[int, bytes] = {}
    refused: list[int] = []
    ended = threading.Event()
    with guest_io(imports, image) as guest:

        def write() -> None:
            chance = random.Random(9)
            while not ended.is_set():
                offset = chance.randrange(SIZE // 4096) * 4096
                data = chance.randbytes(4096)
                if guest.write(offset, data):
                    writes[offset] = data
                else:
                    refused.append(offset)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert execute(imports, image)
            image.snap("s1")
        finally:
            ended.set()
            writer.join(60)
        assert not refused
        assert len(writes) > 10
        assert guest.read(0, SIZE) == patched(CONTENT, writes)
    assert image.read("s0") == CONTENT


def test_a_guest_is_started_on_a_snapshot_and_alone(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    prepare(imports, image, source)
    with pytest.raises(Conflict, match="no snapshot"):
        imports.check_usable(image.pool, image.name)
    image.snap("s0")
    imports.check_usable(image.pool, image.name)
    with guest_io(imports, image), pytest.raises(NotReady, match="open by"):
        imports.check_usable(image.pool, image.name)
    execute(imports, image)
    imports.commit(image.pool, image.name)
    with guest_io(imports, image):
        imports.check_usable(image.pool, image.name)


def test_a_guest_is_started_beside_the_execution_and_beside_nobody_else(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    """As one whose QEMU has died must be; the execution is a client of the image as well."""
    prepare(imports, image, source)
    image.snap("s0")
    source.hold_after = 3
    worker = threading.Thread(target=lambda: execute(imports, image))
    worker.start()
    try:
        deadline = time.monotonic() + 30
        while len(source.fetched) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "watcher=" in image.rbd("status", image.spec)
        imports.check_usable(image.pool, image.name)
        with guest_io(imports, image), pytest.raises(NotReady, match="open by"):
            imports.check_usable(image.pool, image.name)
    finally:
        source.go_on()
        worker.join(60)
    imports.commit(image.pool, image.name)
    assert "whimbrel" not in image.rbd("image-meta", "list", image.spec)


def test_the_driver_writes_no_image_that_is_being_imported(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    from drivers.ceph import RbdImages

    prepare(imports, image, source)
    with pytest.raises(WhimbrelError):
        open_rbd(image.endpoint(writable=True))
    with pytest.raises(WhimbrelError, match="exclusive lock"):
        RbdImages(conf=imports.conf, user=imports.user).begin_session(image.pool, image.name, "key")
