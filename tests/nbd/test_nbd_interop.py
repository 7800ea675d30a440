"""Against the servers of others, with nbdinfo, nbdcopy and qemu-img as oracles."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.ports import lend_port
from tests.nbd.programs import nbdkit, qemu_nbd, run, running
from whimbrel.errors import BaseLost, NotFound, PermissionDenied, QuotaExceeded, Unavailable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.extent import Extent, merge
from whimbrel.nbd import NbdDevice, NbdLane, list_exports, open_nbd

pytestmark = pytest.mark.interop
MIB = 1 << 20
SIZE = 64 * MIB


@contextlib.contextmanager
def opened(endpoint: NbdEndpoint, timeout_s: float = 60.0, *, structured: bool = False) -> Iterator[NbdDevice]:
    device = open_nbd(endpoint, timeout_s=timeout_s, structured_lanes=structured)
    try:
        yield device
    finally:
        device.close()


def at(path: Path, *, writable: bool = False, export: str = "", dirty: tuple[str, ...] = ()) -> NbdEndpoint:
    return NbdEndpoint(unix_path=str(path), writable=writable, export=export, dirty_contexts=dirty)


def image(directory: Path, form: str, seed: int = 1) -> tuple[Path, bytes]:
    """A disk with data in islands; its path and its content."""
    raw, content, rng = directory / "disk.raw", bytearray(SIZE), random.Random(seed)
    with raw.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(30):
            start, length = rng.randrange(0, SIZE - MIB, 65536), rng.choice([65536, 262144, MIB])
            content[start : start + length] = rng.randbytes(length)
            file.seek(start)
            file.write(content[start : start + length])
    if form == "raw":
        return raw, bytes(content)
    path = directory / f"disk.{form}"
    run("qemu-img", "convert", "-f", "raw", "-O", form, str(raw), str(path))
    return path, bytes(content)


def read_all(lane: NbdLane, size: int, step: int = MIB) -> bytes:
    """The content, with everything in flight at once."""
    content = bytearray(size)
    view = memoryview(content)
    for start in range(0, size, step):
        lane.submit_read(start, view[start : min(start + step, size)])
    while lane.in_flight:
        lane.reap()
    return bytes(content)


def oracle_map(uri: str, context: str) -> list[tuple[int, int, int]]:
    """nbdinfo's (offset, length, flags)."""
    entries = json.loads(run("nbdinfo", "--json", f"--map={context}", uri))
    return [(entry["offset"], entry["length"], entry["type"]) for entry in entries]


@pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_qemu_nbd_content_and_map(short_dir: Path, form: str, structured: bool) -> None:
    path, content = image(short_dir, form)
    with qemu_nbd(short_dir, path, "--read-only", "--export-name=vda", form=form) as sock:
        uri = f"nbd+unix:///vda?socket={sock}"
        with opened(at(sock, export="vda"), structured=structured) as device:
            told = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
            assert device.size_bytes == told["export-size"] == SIZE
            assert device.multi_conn == told["can_multi_conn"]
            assert device.block_bytes == told["block_size_minimum"]
            oracle = merge(
                Extent(start, length, bool(kind & 2)) for start, length, kind in oracle_map(uri, "base:allocation")
            )
            assert list(device.extents()) == list(oracle)
            assert read_all(device.lane(), SIZE) == content
            for extent in device.extents():
                if extent.zero:
                    assert not any(content[extent.start : extent.end])
        run("nbdcopy", uri, str(short_dir / "oracle"))
        assert (short_dir / "oracle").read_bytes() == content
        assert list_exports(at(sock)) == ["vda"]
        with pytest.raises(NotFound, match="vdb"):
            open_nbd(at(sock, export="vdb"))
        with pytest.raises(PermissionDenied):
            open_nbd(at(sock, export="vda", writable=True))


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_qemu_nbd_written_bytes_are_on_the_disk(short_dir: Path, form: str) -> None:
    path, content = image(short_dir, form)
    wanted = bytearray(content)
    with qemu_nbd(short_dir, path, form=form) as sock, opened(at(sock, writable=True)) as device:
        lane = device.lane()
        data = random.Random(2).randbytes(40 * MIB)
        lane.submit_write(3 * MIB, memoryview(data))
        lane.submit_zero(50 * MIB, 8 * MIB)
        lane.submit_zero(60 * MIB, MIB, may_punch=False)
        while lane.in_flight:
            lane.reap()
        wanted[3 * MIB : 43 * MIB] = data
        wanted[50 * MIB : 58 * MIB] = bytes(8 * MIB)
        wanted[60 * MIB : 61 * MIB] = bytes(MIB)
        lane.flush()
        assert read_all(device.lane(), SIZE) == wanted
        run("nbdcopy", f"nbd+unix:///?socket={sock}", str(short_dir / "oracle"))
        assert (short_dir / "oracle").read_bytes() == wanted
    run("qemu-img", "convert", "-f", form, "-O", "raw", str(path), str(short_dir / "after"))
    assert (short_dir / "after").read_bytes() == wanted


def test_qemu_nbd_over_tcp(short_dir: Path) -> None:
    path, content = image(short_dir, "raw")
    port = lend_port()
    argv = ["qemu-nbd", "-t", "-e", "8", "-r", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), str(path)]
    with running(*argv, port=port), opened(NbdEndpoint(host="127.0.0.1", port=port)) as device:
        assert read_all(device.lane(), SIZE) == content


def test_dirty_bitmaps_of_qcow2(short_dir: Path) -> None:
    path, _ = image(short_dir, "qcow2")
    wrote = {"one": [(0, 65536), (10 * MIB, 200_000)], "two": [(10 * MIB + 100_000, MIB), (60 * MIB, 4096)]}
    for name, ranges in wrote.items():
        run("qemu-img", "bitmap", "--add", "--enable", "-g", "65536", str(path), name)
        for start, length in ranges:
            run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {start} {length}", str(path))
        run("qemu-img", "bitmap", "--disable", str(path), name)
    run("qemu-io", "-f", "qcow2", "-c", f"write -z -u {10 * MIB} 65536", str(path))
    contexts = tuple(f"qemu:dirty-bitmap:{name}" for name in wrote)
    with qemu_nbd(short_dir, path, "-r", "-B", "one", "-B", "two", form="qcow2") as sock:
        uri = f"nbd+unix:///?socket={sock}"
        marked = set()
        for context in contexts:
            for start, length, kind in oracle_map(uri, context):
                if kind & 1:
                    marked |= set(range(start, start + length, 65536))
        with opened(at(sock, dirty=contexts)) as device:
            changed = list(device.changed())
        assert {unit for e in changed for unit in range(e.start, e.end, 65536)} == marked
        assert all(before.end <= after.start for before, after in itertools.pairwise(changed))
        assert [e for e in changed if e.zero] == [Extent(10 * MIB, 65536, zero=True)]
        with opened(at(sock, dirty=("qemu:dirty-bitmap:three",))) as device:
            with pytest.raises(BaseLost, match="three"):
                device.changed()


def test_storage_daemon_export_with_bitmap(short_dir: Path) -> None:
    path, content = image(short_dir, "qcow2")
    run("qemu-img", "bitmap", "--add", "--enable", str(path), "mig0")
    sock = short_dir / "d.sock"
    argv = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=qcow2,node-name=d,file.driver=file,file.filename={path}"),
        *("--nbd-server", f"addr.type=unix,addr.path={sock},max-connections=8"),
        *("--export", "type=nbd,id=e,node-name=d,name=vda,writable=on,bitmaps.0=mig0"),
    ]
    endpoint = at(sock, writable=True, export="vda", dirty=("qemu:dirty-bitmap:mig0",))
    with running(*argv, unix=sock), opened(endpoint) as device:
        assert list(device.changed()) == []
        lane = device.lane()
        lane.submit_write(5 * MIB, memoryview(b"x" * 65536))
        lane.reap()
        lane.flush()
        assert list(device.changed()) == [Extent(5 * MIB, 65536)]
        expected = content[: 5 * MIB] + b"x" * 65536 + content[5 * MIB + 65536 :]
        assert read_all(device.lane(), SIZE) == expected


def test_nbdkit_memory_and_its_map(short_dir: Path) -> None:
    with nbdkit(short_dir, "memory", "64M") as sock, opened(at(sock, writable=True)) as device:
        assert list(device.extents()) == [Extent(0, SIZE, zero=True)]
        lane = device.lane()
        lane.submit_write(MIB, memoryview(b"y" * 65536))
        lane.submit_zero(2 * MIB, MIB)
        for _ in range(2):
            lane.reap()
        lane.flush()
        expected = merge(
            Extent(start, length, bool(kind & 2))
            for start, length, kind in oracle_map(f"nbd+unix:///?socket={sock}", "base:allocation")
        )
        assert list(device.extents()) == list(expected)
        assert read_all(lane, 4 * MIB) == bytes(MIB) + b"y" * 65536 + bytes(3 * MIB - 65536)


def test_nbdkit_without_zero_multi_conn_and_small_blocks(short_dir: Path) -> None:
    options = ("--filter=multi-conn", "--filter=nozero", "--filter=blocksize-policy", "memory", "64M")
    policy = (
        "multi-conn-mode=disable",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=65536",
    )
    strict = (*policy, "blocksize-error-policy=error")
    with nbdkit(short_dir, *options, *strict) as sock, opened(at(sock, writable=True)) as device:
        assert (device.block_bytes, device.multi_conn) == (4096, False)
        lane, other = device.lane(), device.lane()
        data = random.Random(3).randbytes(5 * MIB)
        lane.submit_write(4096, memoryview(data))
        other.submit_zero(8192, 2 * MIB)
        assert [lane.reap().length, other.reap().length] == [5 * MIB, 2 * MIB]
        lane.flush()
        got = read_all(lane, 6 * MIB, step=2 * MIB)
        expected = bytes(4096) + data + bytes(MIB - 4096)
        zeroed = expected[:8192] + bytes(2 * MIB) + expected[8192 + 2 * MIB :]
        untouched = 8192 + 2 * MIB
        assert got[untouched:] == expected[untouched:]
        assert got[:8192] == expected[:8192]
        # The two requests were in flight together: each block has one or the other.
        for start in range(8192, untouched, 4096):
            assert got[start : start + 4096] in (expected[start : start + 4096], zeroed[start : start + 4096])


def test_nbdkit_errors_belong_to_their_request(short_dir: Path) -> None:
    flag = short_dir / "armed"
    options = ("--filter=error", "memory", "64M", "error-rate=100%", f"error-file={flag}")
    for name, expected in (("EIO", Unavailable), ("ENOSPC", QuotaExceeded), ("EPERM", PermissionDenied)):
        flag.unlink(missing_ok=True)
        with nbdkit(short_dir, *options, f"error={name}") as sock, opened(at(sock, writable=True)) as device:
            lane = device.lane()
            flag.touch()
            for _ in range(8):
                lane.submit_write(0, memoryview(b"z" * 4096))
                lane.submit_read(0, memoryview(bytearray(4096)))
            for _ in range(16):
                with pytest.raises(WhimbrelError) as caught:
                    lane.reap()
                assert type(caught.value) is expected
                assert caught.value.evidence["nbd_error"] == name
            flag.unlink()
            assert read_all(lane, MIB) == bytes(MIB)


def test_nbdkit_that_answers_late_is_a_stall(short_dir: Path) -> None:
    with nbdkit(short_dir, "--filter=delay", "memory", "64M", "rdelay=20") as sock:
        with opened(at(sock)) as device:
            lane = device.lane()
            lane.patience(1.0)
            lane.submit_read(0, memoryview(bytearray(4096)))
            with pytest.raises(Unavailable, match="stalls"):
                lane.reap()


def test_a_killed_server(short_dir: Path) -> None:
    path, _ = image(short_dir, "raw")
    sock = short_dir / "q.sock"
    argv = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", str(sock), str(path)]
    with running(*argv, unix=sock) as process, opened(at(sock)) as device:
        lane = device.lane()
        failures: list[WhimbrelError] = []

        def work() -> None:
            try:
                while True:
                    read_all(lane, SIZE)
            except WhimbrelError as failed:
                failures.append(failed)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)
        process.kill()
        thread.join(60)
        assert not thread.is_alive()
        assert [type(failed) for failed in failures] == [Unavailable]
        with pytest.raises(Unavailable):
            device.lane()
        with pytest.raises(Unavailable):
            list(device.extents())
        lane.close()


def test_more_connections_than_the_server_serves(short_dir: Path) -> None:
    path, _ = image(short_dir, "raw")
    with qemu_nbd(short_dir, path, shared=1) as sock, opened(at(sock)) as device:
        device._timeout_s = 1.0
        with pytest.raises(Unavailable) as caught:
            device.lane()
        assert "clients" in caught.value.action or "server" in caught.value.action
