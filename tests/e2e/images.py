"""Content of disk images, byte for byte and format-free, through ``qemu-img`` alone."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

MIB = 1 << 20
BLOCK_BYTES = 4096


def fill(image: Path, form: str, offset: int, length: int) -> None:
    """Write data to an image that nobody has open; every MiB differs from its neighbours."""
    commands: list[str] = []
    for index in range(length // MIB):
        commands += ["-c", f"write -q -P {(index * 7 + 1) % 255 + 1} {offset + index * MIB} {MIB}"]
    subprocess.run(["qemu-io", "-f", form, *commands, image], capture_output=True, check=True)


def content_bytes(image: Path) -> int:
    """Size of the disk that an image holds, in bytes."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True)
    return int(json.loads(done.stdout)["virtual-size"])


def content(image: Path) -> bytes:
    """All bytes of the disk that an image holds (of one in use: as of some moment in between)."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-e2e-") as scratch:
        flat = Path(scratch) / "flat"
        form = "qcow2" if image.open("rb").read(4) == b"QFI\xfb" else "raw"
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", form, "-O", "raw", image, flat], capture_output=True, check=True
        )
        return flat.read_bytes()


def differing_blocks(left: Path, right: Path) -> set[int]:
    """Numbers of the 4 KiB blocks in which two disks differ."""
    one, other = content(left), content(right)
    assert len(one) == len(other), f"{left} is {len(one)} bytes, {right} is {len(other)}"
    return {
        at // BLOCK_BYTES
        for at in range(0, len(one), BLOCK_BYTES)
        if one[at : at + BLOCK_BYTES] != other[at : at + BLOCK_BYTES]
    }
