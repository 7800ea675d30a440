"""Disks of lab guests that boot by themselves, as flat sparse files: records, and blocks that differ."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from labs.kvm.records import BLOCK_BYTES, ImageRecords, parse_disk
from labs.openstack import CloudHandle
from labs.openstack.guest_image import BASE_MIB
from labs.openstack.server import RECORDS_MIB

MIB = 1 << 20
SLOTS = 2048
COUNTER_BLOCK = BASE_MIB * MIB // BLOCK_BYTES
"""Block of the boot counter."""
FIRST_SLOT = (BASE_MIB + 1) * MIB // BLOCK_BYTES
DATA_OFFSET = 128 * MIB
"""Behind the records and the hot area."""


def address(cloud: CloudHandle, pool: str, image: str) -> str:
    """An RBD image as QEMU's programs take it."""
    return f"rbd:{pool}/{image}:id={cloud.ceph_user}:conf={cloud.ceph_conf}"


def flatten(source: str | Path, form: str, into: Path) -> Path:
    """Copy a disk to a raw sparse file (of one in use: as of some moment in between)."""
    words = ["qemu-img", "convert", "-U", "-f", form, "-O", "raw", str(source), str(into)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return into


def fill(disk: str | Path, form: str, offset: int, length: int) -> None:
    """Write data to a disk that nobody has open; every MiB differs from its neighbours."""
    commands: list[str] = []
    for index in range(length // MIB):
        commands += ["-c", f"write -q -P {(index * 7 + 1) % 255 + 1} {offset + index * MIB} {MIB}"]
    done = subprocess.run(["qemu-io", "-f", form, *commands, str(disk)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def put(disk: str | Path, form: str, offset: int, data: bytes) -> None:
    """Write these bytes to a disk that nobody has open."""
    with tempfile.NamedTemporaryFile(prefix="ose2e-") as file:
        file.write(data)
        file.flush()
        command = f"write -q -s {file.name} {offset} {len(data)}"
        words = ["qemu-io", "-f", form, "-c", command, str(disk)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def records(flat: Path) -> ImageRecords:
    """What the guest wrote on a disk."""
    with flat.open("rb") as file:
        file.seek(BASE_MIB * MIB)
        return parse_disk(file.read((BASE_MIB + RECORDS_MIB) * MIB))


def differing_blocks(left: Path, right: Path, *, same_length: bool = True) -> set[int]:
    """Numbers of the 4 KiB blocks in which two flat files differ; zeros are where a hole is, or nothing."""
    assert not same_length or left.stat().st_size == right.stat().st_size
    wanted = {number for path in (left, right) for number in _data_chunks(path)}
    found: set[int] = set()
    with left.open("rb") as one, right.open("rb") as other:
        for number in sorted(wanted):
            one.seek(number * MIB)
            other.seek(number * MIB)
            mine, theirs = one.read(MIB).ljust(MIB, b"\0"), other.read(MIB).ljust(MIB, b"\0")
            if mine != theirs:
                found |= {
                    (number * MIB + at) // BLOCK_BYTES
                    for at in range(0, MIB, BLOCK_BYTES)
                    if mine[at : at + BLOCK_BYTES] != theirs[at : at + BLOCK_BYTES]
                }
    return found


def _data_chunks(path: Path) -> Iterator[int]:
    """Numbers of the MiB in which a sparse file has data."""
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # no data from here on
                return
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield from range(begin // MIB, -(-at // MIB))


def overwrite(source: Path, disk: Path, form: str) -> None:
    """Write a raw image over the start of a larger disk that nobody has open."""
    words = ["qemu-img", "convert", "-n", "-f", "raw", "-O", form, str(source), str(disk)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
