"""Live imports step by step: each may be repeated, killed, or come too late."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.ceph import ImportState, RbdImports, execution, open_rbd
from drivers.ceph.executing import ENDED_TO_BE_TOLD
from drivers.ceph.liveimport import CACHE_POLICY
from labs.openstack import OpenStackLab
from tests.drivers.ceph.httpsource import HttpSource, http_source
from tests.drivers.ceph.imports import CONTENT, MIB, OBJECT, SIZE, execute, guest_io, imports_of, patched, prepare
from tests.drivers.ceph.scratch import ScratchImage
from whimbrel.errors import Conflict, NotFound, NotReady, Unavailable, Unsupported
from whimbrel.model.extent import Extent

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(600)]

SIXTEENTH = 64 << 10


@pytest.fixture
def imports(openstack_lab: OpenStackLab) -> RbdImports:
    return imports_of(openstack_lab.cloud("a"))


@pytest.fixture
def source() -> Iterator[HttpSource]:
    with http_source(CONTENT) as made:
        yield made


def state(imports: RbdImports, image: ScratchImage) -> ImportState:
    return imports.state(image.pool, image.name)


def facts(image: ScratchImage) -> dict[str, list[str]]:
    told = json.loads(image.rbd("info", "--format", "json", image.spec))
    return {"features": told["features"], "flags": told["flags"]}


def test_an_image_is_used_filled_and_detached_while_it_is_open(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    """And what was written since the snapshot is told exactly, at each step."""
    image.create(SIZE)
    prepare(imports, image, source)
    assert state(imports, image) is ImportState.PREPARED
    assert facts(image)["features"] == ["layering", "migrating"]
    image.snap("s0")
    chance = random.Random(3)
    writes: dict[int, bytes] = {}

    def told() -> list[Extent]:
        image.snap(f"s{len(writes)}")
        device = open_rbd(image.endpoint(snapshot=f"s{len(writes)}", since="s0"))
        try:
            return list(device.changed())
        finally:
            device.close()

    with guest_io(imports, image) as guest:

        def write() -> None:
            offset = chance.randrange(SIZE // 4096) * 4096
            writes[offset] = chance.randbytes(4096)
            assert guest.write(offset, writes[offset])

        def exact() -> None:
            pieces = {byte for extent in told() for byte in range(extent.start, extent.end, 4096)}
            assert pieces == set(writes)

        for _ in range(5):
            write()
        assert guest.read(0, 3 * MIB) == patched(CONTENT, writes)[: 3 * MIB]
        exact()
        assert execute(imports, image)
        assert state(imports, image) is ImportState.EXECUTED
        write()
        exact()
        imports.commit(image.pool, image.name)
        source.end()
        write()
        exact()
        assert guest.read(0, SIZE) == patched(CONTENT, writes)
    assert state(imports, image) is ImportState.PLAIN
    assert facts(image) == {"features": ["layering", "exclusive-lock", "object-map", "fast-diff"], "flags": []}
    assert CACHE_POLICY not in image.rbd("image-meta", "list", image.spec)
    assert image.read("s0") == CONTENT
    assert image.read() == patched(CONTENT, writes)


def test_every_step_may_be_repeated(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    image.create(SIZE)
    for _ in range(2):
        prepare(imports, image, source)
    for _ in range(2):
        assert execute(imports, image)
    prepare(imports, image, source)
    assert state(imports, image) is ImportState.EXECUTED, "a late attempt of an earlier step changes nothing"
    for _ in range(2):
        imports.commit(image.pool, image.name)
    assert execute(imports, image), "all bytes are there"
    imports.abort(image.pool, image.name)
    assert image.read() == CONTENT, "what was committed is not given up"


def test_steps_that_come_too_early_or_too_late(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    imports.abort(image.pool, image.name)
    with pytest.raises(NotFound):
        execute(imports, image)
    with pytest.raises(NotFound):
        imports.commit(image.pool, image.name)
    prepare(imports, image, source)
    with pytest.raises(NotReady, match="not all"):
        imports.commit(image.pool, image.name)
    assert state(imports, image) is ImportState.PREPARED


def test_only_an_empty_image_is_replaced(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    image.create(SIZE)
    image.snap("of-somebody")
    with pytest.raises(Conflict, match="not empty"):
        prepare(imports, image, source)
    image.fill(CONTENT)
    with pytest.raises(Conflict, match="not empty"):
        prepare(imports, image, source)
    image.remove()
    image.create(SIZE)
    with guest_io(imports, image), pytest.raises(Conflict, match="open by"):
        prepare(imports, image, source)
    prepare(imports, image, source)


def test_an_image_that_would_lose_its_traits_is_not_replaced(
    imports: RbdImports, source: HttpSource, image: ScratchImage
) -> None:
    image.create(SIZE, "--image-feature", "exclusive-lock,journaling")
    with pytest.raises(Unsupported, match="journal"):
        prepare(imports, image, source)
    assert "journaling" in image.rbd("info", image.spec)


def test_an_import_from_elsewhere_is_left_alone(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    with http_source(CONTENT) as other:
        with pytest.raises(Conflict) as refusal:
            prepare(imports, image, other)
        assert other.token not in str(refusal.value)
        assert source.token not in str(refusal.value)
    with pytest.raises(Conflict, match="bytes"):
        prepare(imports, image, source, size_bytes=SIZE + 512)


def test_a_given_up_import_is_gone(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    image.snap("s0")
    with pytest.raises(Conflict, match="s0"):
        imports.abort(image.pool, image.name)
    image.rbd("snap", "rm", "--no-progress", f"{image.spec}@s0")
    with guest_io(imports, image) as guest:
        guest.write(0, b"x" * 4096)
        with pytest.raises(NotReady, match="still open"):
            imports.abort(image.pool, image.name)
    for _ in range(2):
        imports.abort(image.pool, image.name)
    assert state(imports, image) is ImportState.ABSENT
    prepare(imports, image, source)


def test_a_killed_execution_goes_on(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    source.hold_after = 8
    totals: set[int] = set()

    def strike() -> bool:
        if len(source.fetched) >= 8:
            os.kill(_children()[0], signal.SIGKILL)
        return False

    with pytest.raises(Unavailable, match="stopped"):
        imports.execute(
            image.pool,
            image.name,
            requests=1,
            should_stop=strike,
            on_progress=lambda _done, total: totals.add(total),
        )
    source.go_on()
    assert totals == {SIZE // OBJECT}
    assert state(imports, image) is ImportState.EXECUTING
    before = len(source.fetched)
    assert execute(imports, image)
    assert len(source.fetched) - before < SIZE // OBJECT, "what was there is not fetched again"
    _until_done(lambda: imports.commit(image.pool, image.name))
    assert image.read() == CONTENT


def _until_done(act: Callable[[], None]) -> None:
    """As Temporal does: a client that was killed counts as one for half a minute, and answers nothing."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return act()
        except (NotReady, Unavailable):
            assert time.monotonic() < deadline
            time.sleep(1)


def test_a_stopped_execution_leaves_no_process(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    source.hold()
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    began = time.monotonic()
    assert not imports.execute(
        image.pool, image.name, requests=2, should_stop=stop.is_set, on_progress=lambda _done, _total: None
    )
    assert time.monotonic() - began < 10
    assert not _children()


def test_the_address_is_on_no_command_line(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    source.hold()
    seen: list[bytes] = []

    def look() -> bool:
        seen.extend(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _children())
        return len(seen) > 3

    assert not imports.execute(
        image.pool, image.name, requests=2, should_stop=look, on_progress=lambda _done, _total: None
    )
    assert seen
    assert not any(source.token.encode() in line for line in seen)


def test_the_process_ends_with_its_parent(imports: RbdImports, source: HttpSource, image: ScratchImage) -> None:
    prepare(imports, image, source)
    source.hold()
    job = execution.Job(conf=imports.conf, user=imports.user, pool=image.pool, image=image.name)
    process = subprocess.Popen([sys.executable, "-m", "drivers.ceph.executing"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(job.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while state(imports, image) is not ImportState.EXECUTING:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.stdin.close()
    assert process.wait(10) == ENDED_TO_BE_TOLD


def test_the_cluster_can_import_and_says_why_it_cannot(imports: RbdImports, image: ScratchImage) -> None:
    assert not imports.why_not(image.pool)
    assert "no-such-pool" in imports.why_not("no-such-pool")
    assert "nobody" in RbdImports(conf=imports.conf, user="nobody").why_not(image.pool)


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"drivers.ceph.executing" in line and parent == str(os.getpid()):
                found.append(int(entry.name))
    return found
