"""End to end over NBD with real qemu-nbd on both ends; qemu-img is the judge."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.nbd.programs import listens
from whimbrel.dataplane import (
    CopySettings,
    CopyStopped,
    FileDevice,
    Manifest,
    changed_by_hash,
    compare,
    copy,
    open_device,
    sample_unchanged,
    verify_round,
)
from whimbrel.errors import Unavailable
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.ports.block import BlockDevice

pytestmark = [pytest.mark.interop, pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="needs qemu-utils")]
MIB = 1 << 20
SIZE = 96 * MIB


@pytest.fixture
def room() -> Iterator[Path]:
    """A short path: unix sockets have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="wdp-") as directory:
        yield Path(directory)


def image(path: Path, pieces: list[tuple[int, int]], seed: int = 1) -> None:
    rng = random.Random(seed)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(SIZE)
        for at, length in pieces:
            os.pwrite(file.fileno(), rng.randbytes(length), at)


@contextmanager
def server(path: Path, kind: str, *, writable: bool) -> Iterator[tuple[subprocess.Popen[bytes], NbdEndpoint]]:
    socket = path.with_suffix(".sock")
    command = ["qemu-nbd", "-f", kind, "-k", str(socket), "--shared=8", "--persistent", "--discard=unmap"]
    process = subprocess.Popen([*command, *([] if writable else ["-r"]), str(path)])
    try:
        deadline = time.monotonic() + 90
        while not listens(socket):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process, NbdEndpoint(unix_path=str(socket), writable=writable)
    finally:
        process.kill()
        process.wait()
        socket.unlink(missing_ok=True)


@pytest.fixture
def serve(room: Path) -> Iterator[Callable[..., BlockDevice]]:
    with ExitStack() as stack:

        def start(name: str, kind: str = "raw", *, writable: bool = False) -> BlockDevice:
            _, endpoint = stack.enter_context(server(room / name, kind, writable=writable))
            device = open_device(endpoint)
            stack.callback(device.close)
            return device

        yield start


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_baseline_delta_and_checks(room: Path, serve: Callable[..., BlockDevice], kind: str) -> None:
    image(room / "source", [(0, 10 * MIB), (20 * MIB + 4096, 5 * MIB + 512), (SIZE - 777, 777)])
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(room / "target"), str(SIZE)], check=True)
    target = serve("target", kind, writable=True)
    with Manifest.open(room / "m", SIZE) as manifest:
        with server(room / "source", "raw", writable=False) as (_, endpoint):
            source = open_device(endpoint)
            result = copy(source, target, extents=source.extents(), manifest=manifest, epoch="0", target_is_zero=True)
            assert result.sent_bytes < 17 * MIB
            assert verify_round(target, manifest).verified_bytes == SIZE
            assert compare(source, target).digest_hex == manifest.digest()
            source.close()
        image(room / "source", [(2 * MIB + 5, 100), (50 * MIB, 3 * MIB)], seed=2)
        if True:
            later = FileDevice(room / "source")
            found = list(changed_by_hash(later, manifest))
            assert [(extent.start, extent.length) for extent in found] == [(2 * MIB, 65536), (50 * MIB, 3 * MIB)]
            copy(later, target, extents=found, manifest=manifest, epoch="1")
            verify_round(target, manifest, epoch="1")
            assert compare(later, target).equal
            assert sample_unchanged(later, manifest, found, fraction=0.5, seed=1) == []
            later.close()
    target.close()
    options = ["-f", "raw", "-F", kind, str(room / "source"), str(room / "target")]
    subprocess.run(["qemu-img", "compare", "-U", *options], check=True, stdout=subprocess.DEVNULL)


def test_server_killed_in_the_middle(room: Path) -> None:
    image(room / "source", [(0, SIZE)])
    image(room / "target", [])
    settings = CopySettings(limit_bytes_per_s=60 * MIB)
    with Manifest.open(room / "m", SIZE) as manifest:
        source = FileDevice(room / "source")
        with server(room / "target", "raw", writable=True) as (process, endpoint):
            target = open_device(endpoint)
            with pytest.raises(Unavailable):
                copy(
                    source,
                    target,
                    extents=source.extents(),
                    manifest=manifest,
                    epoch="0",
                    settings=settings,
                    on_progress=lambda progress: process.kill() if progress.sent_bytes > 20 * MIB else None,
                )
            target.close()
        with server(room / "target", "raw", writable=True) as (_, endpoint):
            target = open_device(endpoint)
            stops = iter([False, True])
            with pytest.raises(CopyStopped):
                copy(
                    source,
                    target,
                    extents=source.extents(),
                    manifest=manifest,
                    epoch="0",
                    settings=CopySettings(limit_bytes_per_s=5 * MIB),
                    should_stop=lambda: next(stops),
                )
            copy(source, target, extents=source.extents(), manifest=manifest, epoch="0")
            assert compare(source, target).digest_hex == manifest.digest()
            target.close()
        source.close()
    assert (room / "source").read_bytes() == (room / "target").read_bytes()
