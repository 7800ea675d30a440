"""What the boot set's search reads of an image, and nothing else of it: ``python -m tests.bench.skeleton IMAGE OUT``.

A trace alone cannot show what the search finds; the image is a gigabyte. The file holds the ranges that were read
(inodes, directories, heads of programs, units), compressed; ``put`` writes them into a disk of other data.
The search must be the same: a rule that reads more finds nothing there, so skeletons are made again when rules change.
"""

from __future__ import annotations

import argparse
import lzma
import struct
from pathlib import Path
from typing import BinaryIO, Final

from whimbrel.stream.chunkmap import CHUNK_BYTES
from whimbrel.stream.prefetch.bootset.gather import gather
from whimbrel.stream.prefetch.bootset.view import View

BUDGET_BYTES: Final = 1 << 30
GRAIN_BYTES: Final = 256
_RANGE: Final = struct.Struct("<QI")


class Watched(View):
    """Notes what is read."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self.grains: set[int] = set()
        super().__init__(self._bring, size_bytes, CHUNK_BYTES, BUDGET_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        found = super().read(offset, length)
        self.grains.update(range(offset // GRAIN_BYTES, -(-(offset + length) // GRAIN_BYTES)))
        return found

    def _bring(self, chunks: list[int]) -> dict[int, bytes]:
        found = {}
        for chunk in chunks:
            self._file.seek(chunk * CHUNK_BYTES)
            found[chunk] = self._file.read(CHUNK_BYTES)
        return found


def save(image: Path, out: Path) -> int:
    """Make the skeleton; how many bytes it says something about."""
    raw = bytearray()
    with image.open("rb") as file:
        view = Watched(file, file.seek(0, 2))
        gather(view, lambda _path, _pieces: None)
        grains = sorted(view.grains)
        while grains:
            count = next((n for n, grain in enumerate(grains) if grain != grains[0] + n), len(grains))
            file.seek(grains[0] * GRAIN_BYTES)
            data = file.read(count * GRAIN_BYTES)
            raw += _RANGE.pack(grains[0] * GRAIN_BYTES, len(data)) + data
            grains = grains[count:]
    out.write_bytes(lzma.compress(raw, preset=9))
    return len(view.grains) * GRAIN_BYTES


def ranges(skeleton: Path) -> list[tuple[int, bytes]]:
    """Offsets and what is there."""
    raw, at, found = lzma.decompress(skeleton.read_bytes()), 0, []
    while at < len(raw):
        offset, length = _RANGE.unpack_from(raw, at)
        at += _RANGE.size
        found.append((offset, raw[at : at + length]))
        at += length
    return found


def put(skeleton: Path, disk: BinaryIO) -> None:
    """Write it into a disk."""
    for offset, data in ranges(skeleton):
        disk.seek(offset)
        disk.write(data)


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(save(options.image, options.out), options.out.stat().st_size)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
