"""The boot set: found in real ext4 file systems, harmless on any bytes, and fetched before the guest asks."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.skeleton import Watched, put
from tests.stream.streams import CHUNK, MIB, client_of, config_for, until
from whimbrel.stream import StreamServer
from whimbrel.stream.prefetch.bootset.ext4 import Ext4
from whimbrel.stream.prefetch.bootset.filesystem import Piece, Tree
from whimbrel.stream.prefetch.bootset.gather import chunks_of, gather
from whimbrel.stream.prefetch.bootset.partitions import partitions
from whimbrel.stream.prefetch.bootset.predictor import BegunFiles, BootSet
from whimbrel.stream.prefetch.bootset.settle import settle
from whimbrel.stream.prefetch.bootset.view import Absent, Spent, Unreadable, View
from whimbrel.stream.prefetch.trace import read_trace

needs_mkfs = pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
SIZE = 96 * MIB
START = MIB


def view_of(raw: bytes, budget: int = 1 << 30) -> View:
    def fetch(chunks: list[int]) -> dict[int, bytes]:
        return {chunk: raw[chunk * CHUNK : (chunk + 1) * CHUNK] for chunk in chunks}

    return View(fetch, len(raw), CHUNK, budget)


def emitted(raw: bytes) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {}
    gather(view_of(raw), found.__setitem__)
    return found


def make_system(stage: Path) -> dict[str, bytes]:
    """A small tree with the names that a boot reads, and one that no boot reads."""
    rng = random.Random(4)
    files = {
        "usr/lib/systemd/systemd": Path("/bin/true").read_bytes(),
        "usr/lib/systemd/system/some.service": b"[Service]\nExecStart=/opt/app/start --now\n",
        "usr/lib/systemd/system/unwanted.service": b"[Service]\nExecStart=/opt/app/never\n",
        "opt/app/start": b"#!/bin/sh\nexec tool /opt/app/data\n",
        "opt/app/data": rng.randbytes(3 * MIB),
        "opt/app/never": rng.randbytes(MIB),
        "usr/bin/tool": rng.randbytes(70_000),
        "usr/bin/other": rng.randbytes(70_000),
        "usr/lib/modules/6.1/modules.dep": b"kernel/fs/fuse/fuse.ko.xz:\nkernel/odd.ko: kernel/fs/fuse/fuse.ko.xz\n",
        "usr/lib/modules/6.1/kernel/fs/fuse/fuse.ko.xz": rng.randbytes(9_000),
        "usr/lib/modules/6.1/kernel/odd.ko": rng.randbytes(9_000),
        "home/letters": rng.randbytes(2 * MIB),
    }
    for name, data in files.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (stage / "sbin").symlink_to("usr/sbin")
    (stage / "usr/sbin").mkdir()
    (stage / "usr/sbin/init").symlink_to("/usr/lib/systemd/systemd")
    wants = stage / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "some.service").symlink_to("/usr/lib/systemd/system/some.service")
    return files


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, bytes]]:
    where = tmp_path_factory.mktemp("boot95")
    files = make_system(where / "stage")
    image = where / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(446)
        sectors = (SIZE - START) // 512
        file.write(bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (START // 512).to_bytes(4, "little"))
        file.write(sectors.to_bytes(4, "little") + bytes(48) + b"\x55\xaa")
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", f"offset={START}", "-d", str(where / "stage")]
    subprocess.run([*command, str(image), str((SIZE - START) // 4096)], check=True, capture_output=True)
    return image.read_bytes(), files


@needs_mkfs
def test_what_a_boot_reads_is_found_where_it_lies(system: tuple[bytes, dict[str, bytes]]) -> None:
    raw, files = system
    found = emitted(raw)
    wanted = {f"/{name}" for name in files} - {"/home/letters", "/opt/app/never", "/usr/bin/other"}
    wanted.discard("/usr/lib/modules/6.1/kernel/odd.ko")
    assert wanted <= found.keys()
    assert (
        not {"/home/letters", "/opt/app/never", "/usr/bin/other", "/usr/lib/modules/6.1/kernel/odd.ko"} & found.keys()
    )
    for path in wanted:
        data = b"".join(raw[piece.disk : piece.disk + piece.length] for piece in found[path])
        assert data == files[path[1:]], path


@needs_mkfs
def test_all_files_read_as_they_were_written(system: tuple[bytes, dict[str, bytes]]) -> None:
    raw, files = system
    view, seen = view_of(raw), dict[str, bytes]()

    def task() -> tuple[()]:
        assert partitions(view) == [START, 0]
        tree = Tree(Ext4(view, START))
        for name in files:
            real, node = tree.find(f"/{name}")
            assert real == f"/{name}"
            seen[name] = tree.filesystem.read(node.number, 0, node.size_bytes)
        assert tree.find("/sbin/init")[0] == "/usr/lib/systemd/systemd"
        assert tree.find("/sbin/../opt/./app/data")[0] == "/opt/app/data"
        with pytest.raises(Unreadable):
            tree.find("/opt/app/missing")
        return ()

    settle(view, [task])
    assert seen == files


@needs_mkfs
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_file_system_ends_quietly_and_names_nothing_outside(
    system: tuple[bytes, dict[str, bytes]], data: st.DataObject
) -> None:
    raw = bytearray(system[0])
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    for _ in range(data.draw(st.integers(1, 200))):
        at = START + rng.randrange(rng.choice((4096, 65536, 4 * MIB)))
        raw[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, rng.randbytes(4)))
    bootset = BootSet()
    with contextlib.suppress(Spent):
        gather(view_of(bytes(raw), 64 * MIB), lambda _path, pieces: bootset.add(chunks_of(pieces, CHUNK)))
    blend_end = SIZE // CHUNK
    proposed: list[int] = []

    def wanted(chunk: int) -> bool:
        return 0 <= chunk < blend_end and chunk not in proposed

    while (proposal := bootset.propose(4, wanted)) is not None:
        assert 0 <= proposal.run[0] < proposal.run[1] <= blend_end
        proposed += range(*proposal.run)
    assert len(proposed) == len(set(proposed))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=3 * CHUNK))
def test_other_disks_have_no_boot_set(raw: bytes) -> None:
    assert emitted(raw) == {}


def test_a_view_fetches_each_chunk_once_and_keeps_to_its_budget() -> None:
    view = view_of(bytes(8 * CHUNK), 3 * CHUNK)
    with pytest.raises(Absent) as absent:
        view.read(CHUNK - 1, 2)
    assert absent.value.chunks == {0, 1}
    view.bring(absent.value.chunks)
    view.bring({0, 1})
    assert view.read(CHUNK - 1, 2) == bytes(2)
    with pytest.raises(Spent):
        view.bring({4, 5})
    with pytest.raises(Unreadable):
        view.read(8 * CHUNK - 1, 2)


def test_a_begun_file_is_proposed_from_where_the_guest_is() -> None:
    found = BootSet()
    found.add([10, 11, 12, 30, 31])
    found.add([31, 40])
    ahead = BegunFiles(found)
    ahead.accessed(11, 12, "write")
    assert ahead.propose(8, lambda _chunk: True) is None
    ahead.accessed(11, 12, "read")
    taken: list[int] = []

    def wanted(chunk: int) -> bool:
        return chunk not in taken

    while (proposal := ahead.propose(8, wanted)) is not None:
        taken += range(*proposal.run)
    assert taken == [12, 30, 31]
    assert found.chunks == 6


def state_of(server: StreamServer) -> object:
    told = server.prefetch.report()["boot_set"]
    assert isinstance(told, dict)
    return told["state"]


@needs_mkfs
def test_a_server_without_history_brings_the_boot_set_first(spot: Path, system: tuple[bytes, dict[str, bytes]]) -> None:
    raw, _ = system
    (spot / "source.raw").write_bytes(raw)
    config = config_for(spot, SIZE, bandwidth_bytes_per_s=4e6)
    server = StreamServer(config)
    try:
        until(lambda: state_of(server) not in {"waiting", "looking"}, "the end of the search")
        assert state_of(server) == "found"
        pieces = [piece for path, found in emitted(raw).items() if path for piece in found]
        needed = chunks_of(pieces, CHUNK)
        until(lambda: all(server._map.is_local(chunk, chunk + 1) for chunk in needed), "the boot set")
        device = client_of(config)
        buffer = memoryview(bytearray(MIB))
        lane = device.lane()
        lane.submit_read(START, buffer)
        lane.reap()
        assert bytes(buffer) == raw[START : START + MIB]
        device.close()
    finally:
        server.stop()


@needs_mkfs
@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(4, 0xFFFFFFFF, id="more blocks than the disk has"),
        pytest.param(336, 0x7FFFFFFF, id="more blocks than any disk has"),
        pytest.param(32, 1, id="a block a group"),
        pytest.param(40, 0, id="no inodes"),
    ],
)
def test_a_superblock_that_would_cost_memory_is_refused(
    system: tuple[bytes, dict[str, bytes]], at: int, value: int
) -> None:
    """Seen: a random superblock made the search keep 15 GB."""
    raw = bytearray(system[0])
    place = START + 1024 + at
    raw[place : place + 4] = value.to_bytes(4, "little")
    assert emitted(bytes(raw)) == {}


@needs_mkfs
def test_a_file_larger_than_the_disk_is_not_read_at_once(system: tuple[bytes, dict[str, bytes]]) -> None:
    raw, _ = system
    view = view_of(raw)

    def task() -> tuple[()]:
        tree = Tree(Ext4(view, START))
        node = tree.find("/usr/bin/tool")[1]
        inodes = tree.filesystem._nodes  # type: ignore[attr-defined]
        inodes[node.number] = (node._replace(size_bytes=1 << 60), *inodes[node.number][1:])
        with pytest.raises(Unreadable):
            tree.filesystem.read(node.number, 0, 1 << 60)
        return ()

    settle(view, [task])


@needs_mkfs
def test_a_tree_whose_branches_are_all_the_same_ends(system: tuple[bytes, dict[str, bytes]]) -> None:
    raw = bytearray(system[0])
    first = (SIZE - START) // 4096 - 3

    def node(depth: int, below: int) -> bytes:
        entry = struct.pack("<IIHH", 0, below, 0, 0) if depth else struct.pack("<IHHI", 0, 40_000, 0, 1)
        return (struct.pack("<HHHHI", 0xF30A, 340, 340, depth, 0) + entry * 340).ljust(4096, b"\0")

    for depth in (0, 1):
        at = START + (first + depth) * 4096
        raw[at : at + 4096] = node(depth, first + depth - 1)
    view = view_of(bytes(raw))
    view.bring(range(SIZE // CHUNK))
    filesystem = Ext4(view, START)
    with pytest.raises(Spent):
        filesystem._extents(node(2, first + 1), None, [])


@pytest.mark.parametrize(("system", "least"), [("b", 0.9), ("u", 0.84)], ids=["debian", "ubuntu"])
def test_most_of_what_a_recorded_boot_read_is_in_the_boot_set(tmp_path: Path, system: str, least: float) -> None:
    """On the metadata of two real systems that no rule was made with; the rest is what others than files hold."""
    traces = Path(__file__).with_name("traces")
    guest = read_trace(traces / f"{system}2-boot.trace")
    disk = tmp_path / "disk"
    found: set[int] = set()
    with disk.open("w+b") as file:
        file.truncate(guest.header.size_bytes)
        put(traces / f"{system}2.skeleton", file)
        file.flush()
        view = Watched(file, guest.header.size_bytes)
        gather(view, lambda _path, pieces: found.update(chunks_of(pieces, CHUNK)))
    needed = {
        chunk
        for one in guest.records
        if one.access == "read"
        for chunk in range(one.offset // CHUNK, (one.offset + one.length - 1) // CHUNK + 1)
    }
    share = len(needed & found) / len(needed)
    assert share > least
    assert len(found) < 2.5 * len(needed)
