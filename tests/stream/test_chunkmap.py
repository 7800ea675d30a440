"""The map's two files: what is believed when, damage, and exactly what becomes durable."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.stream.lossy import LossyDisk
from whimbrel.errors import Conflict
from whimbrel.stream.chunkmap import Changes, ChunkMap, current_boot_id, joined, open_map
from whimbrel.stream.mapfile import HEADER_BYTES, NO, UNSURE, YES, Header, unpack_header

CHUNKS = 50
CHUNK = 65536
SIZE = CHUNKS * CHUNK - 7
BOOT = bytes(16)
NEXT_BOOT = bytes(15) + b"\1"

Open = Callable[..., ChunkMap]


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def opened(stem: Path, boot: bytes = BOOT, size: int = SIZE) -> ChunkMap:
    return open_map(stem, size_bytes=size, source="s", target="t", boot_id=boot)


def local(chunkmap: ChunkMap) -> list[int]:
    return [chunk for chunk in range(chunkmap.chunks) if chunkmap.is_local(chunk, chunk + 1)]


def test_the_live_map_survives_the_process_and_not_the_host(stem: Path) -> None:
    first = opened(stem)
    assert (first.chunks, first.missing_chunks) == (CHUNKS, CHUNKS)
    first.mark_local(3, 6)
    first.harden(first.take_changes())
    first.mark_written(4, 5)
    first.mark_local(10, 20)
    first.close()
    again = opened(stem)
    assert local(again) == [3, 4, 5, *range(10, 20)]
    assert again.missing_chunks == CHUNKS - 13
    again.close()
    crashed = opened(stem, NEXT_BOOT)
    assert local(crashed) == [3, 4, 5]
    assert [crashed.unsure(chunk) for chunk in (3, 4, 5, 6)] == [True, True, True, False]
    assert crashed.written_chunks == 3
    assert crashed.header.host_crashes == 1
    crashed.close()
    assert opened(stem, NEXT_BOOT).header.host_crashes == 1


def test_after_a_clean_end_another_boot_is_no_crash(stem: Path) -> None:
    first = opened(stem)
    first.mark_local(0, 5)
    first.harden(first.take_changes())
    first.close(clean=True)
    second = opened(stem, NEXT_BOOT)
    assert second.header.host_crashes == 0
    assert not second.unsure(0)
    second.close()
    third = opened(stem, bytes(15) + b"\2")
    assert third.header.host_crashes == 1
    assert third.unsure(0)
    third.close()


def test_only_what_was_taken_before_the_sync_becomes_durable(stem: Path) -> None:
    files: list[LossyDisk] = []

    def durable(path: Path) -> LossyDisk:
        files.append(LossyDisk(path.read_bytes()))
        return files[-1]

    chunkmap = open_map(stem, size_bytes=SIZE, source="s", target="t", boot_id=BOOT, durable_file=durable)
    chunkmap.mark_local(1, 3)
    taken = chunkmap.take_changes()
    chunkmap.mark_local(3, 4)
    chunkmap.mark_local(0, 5)
    chunkmap.harden(taken)
    table = files[0].stable[HEADER_BYTES : HEADER_BYTES + 6]
    assert table == bytes([NO, YES, YES, NO, NO, NO])
    chunkmap.harden(chunkmap.take_changes())
    assert files[0].stable[HEADER_BYTES : HEADER_BYTES + 6] == bytes([YES] * 5 + [NO])
    assert not chunkmap.take_changes()
    chunkmap.close()


def test_a_death_between_marking_and_hardening_is_made_good(stem: Path) -> None:
    first = opened(stem)
    first.mark_written(7, 9)
    first.mark_local(7, 9)
    first.close()
    second = opened(stem)
    changes = second.take_changes()
    assert changes == Changes([(7, 9)], [(7, 9)])
    second.harden(changes)
    second.close()
    assert local(opened(stem, NEXT_BOOT)) == [7, 8]


@pytest.mark.parametrize(
    ("name", "at"),
    [("durable", 20), ("durable", HEADER_BYTES + 3), ("durable", HEADER_BYTES + CHUNKS + 3), ("live", HEADER_BYTES)],
)
def test_damage_is_found(stem: Path, name: str, at: int) -> None:
    first = opened(stem)
    first.mark_local(0, 2)
    first.harden(first.take_changes())
    first.close()
    path = Path(f"{stem}.{name}")
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF if at > 100 else 1
    raw[at] = raw[at] if raw[at] not in {NO, YES, UNSURE} else 0
    path.write_bytes(raw)
    with pytest.raises(Conflict, match="damaged"):
        opened(stem)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(Conflict, match="damaged"):
        opened(stem)


def test_a_damaged_live_header_in_the_same_boot_is_refused(stem: Path) -> None:
    first = opened(stem)
    first.mark_local(0, 2)
    first.harden(first.take_changes())
    first.close()
    path = Path(f"{stem}.live")
    path.write_bytes(bytes(HEADER_BYTES) + path.read_bytes()[HEADER_BYTES:])
    with pytest.raises(Conflict, match="the host did not crash"):
        opened(stem)
    assert local(opened(stem, NEXT_BOOT)) == [0, 1]


def test_strangers_and_rivals(stem: Path) -> None:
    mine = opened(stem)
    with pytest.raises(Conflict, match="another process"):
        opened(stem)
    mine.close()
    for other in ({"source": "x"}, {"target": "x"}, {"size_bytes": SIZE - 1}, {"chunk_bytes": 4096}):
        wanted: dict[str, object] = {"source": "s", "target": "t", "size_bytes": SIZE, **other}
        with pytest.raises(Conflict, match=next(iter(other))):
            open_map(stem, **wanted)  # type: ignore[arg-type]
    opened(stem).close()


def test_the_boot_id_of_this_host() -> None:
    assert current_boot_id() == current_boot_id()
    assert len(current_boot_id()) == 16


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, CHUNKS - 1), st.integers(1, 9)), max_size=12), st.integers(1, 9))
def test_questions(tmp_path_factory: pytest.TempPathFactory, marks: list[tuple[int, int]], longest: int) -> None:
    chunkmap = opened(tmp_path_factory.mktemp("q") / "m")
    model = [False] * CHUNKS
    for first, count in marks:
        last = min(first + count, CHUNKS)
        chunkmap.mark_local(first, last)
        model[first:last] = [True] * (last - first)
    assert chunkmap.missing_chunks == model.count(False)
    for first in range(0, CHUNKS, 3):
        missing = [chunk for chunk in range(first, CHUNKS) if not model[chunk]]
        run = chunkmap.missing_run(first, CHUNKS, longest)
        assert (run is None) == (not missing)
        if run is not None:
            assert run[0] == missing[0]
            assert 1 <= run[1] - run[0] <= longest
            assert not any(model[run[0] : run[1]])
            full = run[1] == CHUNKS or model[run[1]] or run[1] - run[0] == longest
            assert full
        end, is_local = chunkmap.local_run(first, CHUNKS)
        assert is_local == model[first]
        assert set(model[first:end]) == {is_local}
        assert end == CHUNKS or model[end] != is_local
    merged = joined((first, first + count) for first, count in marks)
    assert {c for run in merged for c in range(*run)} == {c for f, n in marks for c in range(f, f + n)}
    assert all(before[1] < after[0] for before, after in pairwise(merged))
    chunkmap.close()


@settings(deadline=None)
@given(
    st.integers(1, 2**40), st.binary(min_size=16, max_size=16), st.integers(0, 1000), st.booleans(), st.integers(0, 120)
)
def test_headers(size: int, boot: bytes, crashes: int, clean: bool, flip: int) -> None:
    header = Header(CHUNK, size, boot, bytes(32), b"\7" * 32, crashes, clean)
    page = header.pack()
    assert unpack_header(page) == header
    damaged = bytearray(page)
    damaged[flip] ^= 4
    assert unpack_header(bytes(damaged)) is None
    assert unpack_header(page[:-1]) is None
