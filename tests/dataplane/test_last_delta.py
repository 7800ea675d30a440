"""A comparison with a target that was frozen before the last delta misses nothing that one with the end would find."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.disks import UNIT, reader, writer
from whimbrel.dataplane import LastDelta, Manifest, MemoryDisk, compare, copy, verify_round
from whimbrel.model.extent import Extent

SIZE = 40 * UNIT + 4321
piece = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5 * UNIT), st.booleans())


class Move:
    """A disk copied whole, frozen at the target, changed at the source, and the changes copied."""

    def __init__(self, directory: str, base: list[tuple[int, int, bool]], delta: list[tuple[int, int, bool]]) -> None:
        self.chance = random.Random(1)
        self.source, self.target, self.frozen = MemoryDisk(SIZE), MemoryDisk(SIZE), MemoryDisk(SIZE)
        self.manifest = Manifest.open(Path(directory) / "disk.manifest", SIZE)
        self.write(base)
        whole = reader(self.source).extents()
        copy(reader(self.source), writer(self.target), extents=whole, manifest=self.manifest, epoch="baseline")
        self.frozen.write(0, self.target.read(0, SIZE))
        self.changed = _joined(self.write(delta))
        copy(reader(self.source), writer(self.target), extents=self.changed, manifest=self.manifest, epoch="final")
        verify_round(reader(self.target), self.manifest)

    def write(self, pieces: list[tuple[int, int, bool]]) -> list[Extent]:
        done = []
        for start, wish, zero in pieces:
            length = min(wish, SIZE - start)
            self.source.write(start, bytes(length) if zero else self.chance.randbytes(length))
            done.append(Extent(start, length))
        return done

    def compared(self, *, sampled: bool = False) -> tuple[int, int, int]:
        """Units that differ, bytes of the delta, all bytes."""
        since = LastDelta(self.changed, self.manifest)
        mode = "sampled" if sampled else "full"
        found = compare(reader(self.source), reader(self.frozen), since=since, mode=mode)  # type: ignore[arg-type]
        looked = found.compared_bytes + found.skipped_zero_bytes + found.read_back_bytes
        return found.mismatch_count, found.read_back_bytes, looked


def _joined(extents: list[Extent]) -> list[Extent]:
    """In order, without overlaps."""
    joined: list[Extent] = []
    for extent in sorted(extents, key=lambda extent: extent.start):
        if joined and extent.start <= joined[-1].end:
            last = joined.pop()
            joined.append(Extent(last.start, max(last.end, extent.end) - last.start))
        else:
            joined.append(extent)
    return joined


@settings(max_examples=60, deadline=None)
@given(base=st.lists(piece, max_size=6), delta=st.lists(piece, max_size=6), sampled=st.booleans())
def test_what_was_moved_is_equal(
    base: list[tuple[int, int, bool]], delta: list[tuple[int, int, bool]], *, sampled: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        move = Move(directory, base, delta)
        differing, brought, looked = move.compared(sampled=sampled)
        assert differing == 0
        assert brought <= looked
        if not sampled:
            assert looked == SIZE
        move.manifest.close()


@settings(max_examples=60, deadline=None)
@given(base=st.lists(piece, max_size=6), delta=st.lists(piece, max_size=6), at=st.integers(0, SIZE - 1))
def test_one_byte_that_nobody_told_of_is_found(
    base: list[tuple[int, int, bool]], delta: list[tuple[int, int, bool]], at: int
) -> None:
    """Inside what the delta brought as well as outside of it."""
    with tempfile.TemporaryDirectory() as directory:
        move = Move(directory, base, delta)
        old = move.source.read(at, 1)[0]
        move.source.write(at, bytes([old ^ 1]))
        assert move.compared()[0] == 1
        move.manifest.close()


def test_the_target_must_be_as_it_was_frozen(tmp_path: Path) -> None:
    move = Move(str(tmp_path), [(0, 10 * UNIT, False)], [(3 * UNIT, UNIT, False)])
    move.frozen.write(7 * UNIT, b"damage")
    assert move.compared()[0] == 1
    move.manifest.close()


@pytest.mark.parametrize("delta", [(3 * UNIT + 5, 100, False), (3 * UNIT, UNIT, True)])
def test_where_no_digest_is_known_the_rounds_own_proof_counts(tmp_path: Path, delta: tuple[int, int, bool]) -> None:
    """Another mover wrote the delta: its part is named apart, the rest is compared as ever."""
    move = Move(str(tmp_path), [(0, 10 * UNIT, False)], [delta])
    move.manifest.forget(3, 1)
    assert move.compared()[:2] == (0, UNIT)
    move.source.write(9 * UNIT, b"untold")
    assert move.compared()[0] == 1
    move.manifest.close()
