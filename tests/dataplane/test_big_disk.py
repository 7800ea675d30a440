"""In processes of their own: memory on a 1 TiB disk, and SIGKILL at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whimbrel.dataplane import Manifest

MIB = 1 << 20
CHILD = """
import json, sys
from whimbrel.dataplane import CopySettings, FileDevice, Governor, Manifest, compare, copy, verify_round
source, target, path, rate = sys.argv[1:]
reader, writer = FileDevice(source), FileDevice(target, writable=True)
with Manifest.open(path, reader.size_bytes) as manifest:
    at = manifest.cursor_bytes
    result = copy(reader, writer, extents=reader.extents(), manifest=manifest, epoch="baseline", target_is_zero=True,
        settings=CopySettings(limit_bytes_per_s=float(rate) or None))
    verified = verify_round(writer, manifest)
    compared = compare(reader, writer)
    figures = {
        "from": at, "read": result.read_bytes, "equal": compared.equal, "compared": compared.compared_bytes,
        "same_digest": compared.digest_hex == manifest.digest(),
        "rss_mib": next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024,
    }
print(json.dumps(figures))
"""


def child(tmp_path: Path, rate: float = 0) -> subprocess.Popen[bytes]:
    names = [str(tmp_path / name) for name in ("source", "target", "manifest")]
    return subprocess.Popen([sys.executable, "-c", CHILD, *names, str(rate)], stdout=subprocess.PIPE)


def prepare(tmp_path: Path, size: int, pieces: list[tuple[int, int]]) -> None:
    rng = random.Random(4)
    for name in ("source", "target"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
            if name == "source":
                for at, length in pieces:
                    os.pwrite(file.fileno(), rng.randbytes(length), at)


@pytest.mark.timeout(300)
def test_one_tib_with_little_data_takes_little_memory(tmp_path: Path) -> None:
    tib = 1 << 40
    prepare(tmp_path, tib, [(at * (tib // 64), MIB) for at in range(64)])
    process = child(tmp_path)
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    figures = json.loads(out)
    assert figures["equal"]
    assert figures["same_digest"]
    assert figures["read"] == 64 * MIB
    assert figures["compared"] == 64 * MIB
    assert figures["rss_mib"] < 150
    assert (tmp_path / "target").stat().st_blocks * 512 < 80 * MIB
    assert (tmp_path / "manifest").stat().st_blocks * 512 < 16 * MIB


@pytest.mark.timeout(300)
def test_sigkill_and_again_until_done(tmp_path: Path) -> None:
    size = 64 * MIB
    prepare(tmp_path, size, [(0, 20 * MIB), (30 * MIB, 25 * MIB)])
    deadline = time.monotonic() + 200
    cursors = [0]
    while len(cursors) < 3 and time.monotonic() < deadline:
        process = child(tmp_path, rate=4 * MIB)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
            cursor = peek(tmp_path)
            if cursor > cursors[-1]:
                cursors.append(cursor)
                process.send_signal(signal.SIGKILL)
                process.wait()
        process.communicate()
    assert len(cursors) == 3, "the cursor did not move while the copy ran"
    out, _ = child(tmp_path).communicate(timeout=100)
    figures = json.loads(out)
    assert figures["equal"]
    assert figures["from"] >= cursors[-1]
    assert figures["read"] < 45 * MIB
    assert (tmp_path / "source").read_bytes() == (tmp_path / "target").read_bytes()


def peek(tmp_path: Path) -> int:
    """The cursor in the manifest's newer slot, read without its lock."""
    from whimbrel.dataplane.header import read_header

    path = tmp_path / "manifest"
    if not path.exists():
        return 0
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, str(path), 64 * MIB).cursor_bytes
    finally:
        os.close(fd)


def test_manifest_of_a_killed_process_can_be_opened_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from whimbrel.dataplane import Manifest; m = Manifest.open(sys.argv[1], 65536);"
    code += "m.begin('a'); os.kill(os.getpid(), 9)"
    path = tmp_path / "manifest"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with Manifest.open(path, 65536) as manifest:
        assert manifest.epoch == "a"
