"""Allocation and changed extents: from a scripted server, and any runs by property."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nbd.conftest import Serve
from tests.nbd.scripted_server import SIZE, STATUS, Asked, Offer, Session, silence
from whimbrel.errors import BaseLost, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.extent import Extent, merge
from whimbrel.nbd import open_nbd
from whimbrel.nbd.status import allocation, overlay, runs_within, within

BASE, ONE, TWO = "base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"
ALL = {BASE: 7, ONE: 0, TWO: 9}


def answering(*chunks: tuple[int, list[tuple[int, int]]]) -> Callable[[Session], None]:
    """Answer every block status with these (context id, runs)."""

    def script(session: Session) -> None:
        while True:
            asked = session.request()
            assert asked.command == STATUS
            for context, runs in chunks:
                session.status(asked.cookie, context, *runs, done=False)
            session.chunk(asked.cookie, 0)

    return script


def mapping(maps: dict[int, list[tuple[int, int]]]) -> Callable[[Session], None]:
    """Answer honestly from whole maps of the disk, the last run not cut at the end of the range."""

    def script(session: Session) -> None:
        while True:
            asked = session.request()
            for context, runs in maps.items():
                position, answer = 0, []
                for length, flags in runs:
                    start, position = position, position + length
                    if position > asked.offset and start < asked.offset + asked.length:
                        answer.append((position - max(start, asked.offset), flags))
                session.status(asked.cookie, context, *answer, done=False)
            session.chunk(asked.cookie, 0)

    return script


def test_extents_cover_all_and_are_merged(serve: Serve) -> None:
    runs = [(4096, 0), (4096, 0), (8192, 3), (4096, 2), (4096, 1), (SIZE - 24576, 3)]
    device = open_nbd(serve(answering((7, runs)), offer=Offer(contexts=ALL)))
    assert list(device.extents()) == [
        Extent(0, 8192),
        Extent(8192, 12288, zero=True),
        Extent(20480, 4096),
        Extent(24576, SIZE - 24576, zero=True),
    ]
    device.close()


def test_short_answers_are_asked_on_and_long_ones_cut(serve: Serve) -> None:
    asked: list[tuple[int, int]] = []

    def script(session: Session) -> None:
        while True:
            one: Asked = session.request()
            asked.append((one.offset, one.length))
            session.status(one.cookie, 7, (300_000, 3 if one.offset else 0))

    device = open_nbd(serve(script, offer=Offer(contexts=ALL)))
    assert list(device.extents()) == [Extent(0, 300_000), Extent(300_000, SIZE - 300_000, zero=True)]
    assert asked == [(start, SIZE - start) for start in range(0, SIZE, 300_000)]
    assert list(device.extents(299_000, 2000)) == [Extent(299_000, 2000, zero=True)]
    device.close()


def test_extents_are_asked_lazily_in_bounded_ranges(serve: Serve) -> None:
    asked: list[Asked] = []

    def script(session: Session) -> None:
        while True:
            asked.append(session.request())
            session.status(asked[-1].cookie, 7, (asked[-1].length, len(asked) % 2))

    device = open_nbd(serve(script, offer=Offer(contexts=ALL, size=1 << 40)))
    stream = device.extents()
    assert asked == []
    assert next(iter([stream])) is not None
    whole = list(stream)
    assert whole == [Extent(0, 1 << 40)]
    assert len(asked) < 2000
    assert asked[0].length == 128 << 20
    assert max(one.length for one in asked) <= 2 << 30
    device.close()


def test_a_range_that_is_not_whole_blocks_is_asked_wider_and_cut(serve: Serve) -> None:
    asked: list[Asked] = []

    def script(session: Session) -> None:
        while True:
            asked.append(session.request())
            session.status(asked[-1].cookie, 7, (512, 3), (SIZE, 0))

    device = open_nbd(serve(script, offer=Offer(contexts=ALL, blocks=(512, 512, SIZE))))
    assert list(device.extents(700, 1000)) == [Extent(700, 324, zero=True), Extent(1024, 676)]
    assert (asked[0].offset, asked[0].length) == (512, 1536)
    assert list(device.extents(5, 0)) == []
    for start, length in ((-1, 2), (0, SIZE + 1), (SIZE, 1)):
        with pytest.raises(ValueError):
            device.extents(start, length)
    device.close()


def test_changed_is_the_union_with_zeros_marked(serve: Serve) -> None:
    maps = {
        7: [(65536, 0), (65536, 3), (SIZE, 0)],
        0: [(32768, 0), (65536, 1), (SIZE, 0)],
        9: [(65536, 0), (32768, 1), (131072, 0), (65536, 1), (SIZE - 294912, 0)],
    }
    device = open_nbd(serve(mapping(maps), offer=Offer(contexts=ALL), dirty=(ONE, TWO)))
    assert list(device.changed()) == [
        Extent(32768, 32768),
        Extent(65536, 32768, zero=True),
        Extent(229376, 65536),
    ]
    assert list(device.changed(40000, 30000)) == [Extent(40000, 25536), Extent(65536, 4464, zero=True)]
    device.close()


def test_changed_without_tracking_or_without_the_context(serve: Serve) -> None:
    untracked = open_nbd(serve(offer=Offer(contexts=ALL)))
    with pytest.raises(Unsupported):
        untracked.changed()
    untracked.close()
    for offer in (Offer(contexts={BASE: 1, ONE: 2}), Offer(structured=False)):
        device = open_nbd(serve(offer=offer, dirty=(ONE, TWO)))
        with pytest.raises(BaseLost) as caught:
            device.changed()
        assert TWO in caught.value.message
        device.close()


def test_changed_where_allocation_is_not_offered(serve: Serve) -> None:
    device = open_nbd(serve(answering((0, [(512, 1), (SIZE, 0)])), offer=Offer(contexts={ONE: 0}), dirty=(ONE,)))
    assert list(device.changed()) == [Extent(0, 512)]
    assert list(device.extents()) == [Extent(0, SIZE)]
    device.close()


@pytest.mark.parametrize(
    ("chunks", "rule"),
    [
        ([(7, [(0, 0), (SIZE, 0)])], "zero length"),
        ([(7, [(SIZE, 0), (1, 0)])], "beyond the range"),
        ([(7, [])], "wrong length"),
        ([(8, [(SIZE, 0)])], "without a context"),
        ([], "without a context"),
        ([(7, [(SIZE, 0)]), (7, [(SIZE, 0)])], "two block status"),
        ([(7, [(100, 0)])], "not whole blocks"),
    ],
)
def test_lies_about_block_status(serve: Serve, chunks: list[tuple[int, list[tuple[int, int]]]], rule: str) -> None:
    offer = Offer(contexts=ALL, blocks=(512, 512, SIZE))
    device = open_nbd(serve(answering(*chunks), offer=offer), timeout_s=20)
    with pytest.raises(Unavailable) as caught:
        list(device.extents())
    assert rule in caught.value.evidence["protocol"]
    device.close()


def test_refused_stalled_and_dead_block_status(serve: Serve) -> None:
    def refuse(session: Session) -> None:
        session.simple(session.request().cookie, 1)
        session.silent()

    def die(session: Session) -> None:
        session.request()
        raise EOFError

    for script, expected in ((refuse, PermissionDenied), (silence, Unavailable), (die, Unavailable)):
        device = open_nbd(serve(script))
        device._status_lane.patience(0.5)
        with pytest.raises(expected):
            list(device.extents())
        device.close()


RUNS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=20)


def bits(runs: list[tuple[int, int]], mask: int) -> list[bool]:
    return [bool(flags & mask) for length, flags in runs for _ in range(length)]


@given(st.lists(RUNS, min_size=1, max_size=3), st.none() | RUNS, st.integers(0, 100))
def test_overlay_is_the_union_byte_by_byte(
    dirty: list[list[tuple[int, int]]], zeros: list[tuple[int, int]] | None, start: int
) -> None:
    everything = [*dirty, zeros] if zeros is not None else dirty
    reach = min(sum(length for length, _ in runs) for runs in everything)
    cut = [runs_within("x", runs, 10**6, reach) for runs in dirty]
    cut_zeros = runs_within("x", zeros, 10**6, reach) if zeros is not None else None
    found = list(merge(overlay(start, cut, cut_zeros)))
    marks = [None] * reach
    wanted: list[bool | None] = list(marks)
    for index, changed in enumerate(zip(*(bits(list(runs), 1)[:reach] for runs in cut), strict=True)):
        if any(changed):
            wanted[index] = bits(list(cut_zeros), 2)[index] if cut_zeros is not None else False
    got: list[bool | None] = list(marks)
    end = start
    for extent in found:
        assert extent.start >= end
        end = extent.end
        got[extent.start - start : extent.end - start] = [extent.zero] * extent.length
    assert got == wanted
    assert len(got) == reach


@given(RUNS, st.integers(0, 50), st.integers(0, 200), st.integers(0, 200))
def test_allocation_within_a_range_has_no_gap(runs: list[tuple[int, int]], start: int, low: int, high: int) -> None:
    total = sum(length for length, _ in runs)
    found = list(within(allocation(start, runs), low, high))
    zero = {start + index: flag for index, flag in enumerate(bits(runs, 2))}
    covered = {byte: extent.zero for extent in found for byte in range(extent.start, extent.end)}
    assert covered == {byte: flag for byte, flag in zero.items() if low <= byte < high}
    assert len(zero) == total
