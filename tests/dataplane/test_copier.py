"""The copier's promises, one by one; test_copy_properties.py has the histories."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.disks import UNIT, assert_equal_and_known, reader, writer
from whimbrel.dataplane import CopyProgress, CopySettings, CopyStopped, Governor, Manifest, MemoryDisk, copier, copy
from whimbrel.dataplane.checkpoint import Checkpointer, Ledger
from whimbrel.dataplane.digests import UNKNOWN, zero_digest
from whimbrel.dataplane.plan import Request, requests, widen
from whimbrel.errors import PreconditionFailed, QuotaExceeded, Unavailable
from whimbrel.model.extent import Extent

Opener = Callable[[int], Manifest]
SMALL = CopySettings(request_bytes=UNIT, in_flight_bytes=8 * UNIT)


def filled(units: int, *, data: range | None = None, seed: int = 1) -> MemoryDisk:
    disk = MemoryDisk(units * UNIT)
    rng = random.Random(seed)
    for unit in data if data is not None else range(units):
        disk.write(unit * UNIT, rng.randbytes(UNIT))
    return disk


def test_baseline_to_a_fresh_volume_touches_data_only(manifest_of: Opener) -> None:
    source, target = filled(100, data=range(10, 20)), MemoryDisk(100 * UNIT)
    manifest = manifest_of(source.size_bytes)
    result = copy(
        reader(source),
        writer(target),
        extents=reader(source).extents(),
        manifest=manifest,
        epoch="b",
        target_is_zero=True,
    )
    assert_equal_and_known(source, target, manifest)
    assert (result.read_bytes, result.sent_bytes, result.zeroed_bytes) == (10 * UNIT, 10 * UNIT, 0)
    assert result.skipped_bytes == 90 * UNIT
    assert result.ranges == 1
    assert target.changed == set(range(10, 20))


def test_zeros_are_written_to_a_used_volume_and_found_inside_data(manifest_of: Opener) -> None:
    source, target = filled(40, data=range(10, 20)), filled(40, seed=9)
    result = copy(
        reader(source),
        writer(target),
        extents=[Extent(0, 40 * UNIT)],
        manifest=manifest_of(source.size_bytes),
        epoch="b",
    )
    assert target.read(0, 40 * UNIT) == source.read(0, 40 * UNIT)
    assert (result.sent_bytes, result.zeroed_bytes) == (10 * UNIT, 30 * UNIT)
    assert target.allocated() == list(range(10, 20))


def test_fresh_volume_is_believed_in_the_first_epoch_only(manifest_of: Opener) -> None:
    source, target, manifest = filled(8), MemoryDisk(8 * UNIT), manifest_of(8 * UNIT)
    first = {"manifest": manifest, "target_is_zero": True}
    copy(reader(source), writer(target), extents=reader(source).extents(), epoch="a", **first)  # type: ignore[arg-type]
    empty = MemoryDisk(8 * UNIT)
    copy(reader(empty), writer(target), extents=reader(empty).extents(), epoch="b", **first)  # type: ignore[arg-type]
    assert target.allocated() == []


def test_finished_epoch_is_not_copied_again(manifest_of: Opener) -> None:
    source, target, manifest = filled(8), MemoryDisk(8 * UNIT), manifest_of(8 * UNIT)
    once = copy(reader(source), writer(target), extents=reader(source).extents(), manifest=manifest, epoch="a")
    before = source.requests, target.requests
    again = copy(reader(source), writer(target), extents=reader(source).extents(), manifest=manifest, epoch="a")
    assert (source.requests, target.requests) == before
    assert (again.digest_hex, again.ranges, again.read_bytes) == (once.digest_hex, once.ranges, 0)


def test_digest_does_not_depend_on_lanes(manifest_of: Opener) -> None:
    source = filled(200)
    digests = set()
    for lanes in (1, 2, 4):
        manifest = manifest_of(source.size_bytes)
        settings = CopySettings(lanes=lanes, request_bytes=UNIT, in_flight_bytes=16 * UNIT)
        target = writer(MemoryDisk(source.size_bytes))
        extents = reader(source).extents()
        result = copy(reader(source), target, extents=extents, manifest=manifest, epoch="a", settings=settings)
        digests.add(result.digest_hex)
        manifest.discard()
    assert len(digests) == 1


def test_stop_drains_saves_and_goes_on(manifest_of: Opener) -> None:
    source, target, manifest = filled(300), MemoryDisk(300 * UNIT), manifest_of(300 * UNIT)
    governor = Governor(100 * UNIT)
    calls = count()
    with pytest.raises(CopyStopped) as stopped:
        copy(
            reader(source),
            writer(target),
            extents=reader(source).extents(),
            manifest=manifest,
            epoch="a",
            settings=SMALL,
            governor=governor,
            should_stop=lambda: next(calls) >= 1,
        )
    cursor = stopped.value.progress.cursor_bytes
    assert 0 < cursor < 300 * UNIT
    assert manifest.cursor_bytes == cursor
    assert target.read(0, cursor) == source.read(0, cursor)
    result = copy(reader(source), writer(target), extents=reader(source).extents(), manifest=manifest, epoch="a")
    assert result.read_bytes <= 300 * UNIT - cursor
    assert_equal_and_known(source, target, manifest)


def left_behind() -> list[str]:
    """Threads of a copy that have not ended; others of this process come and go."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("copy-")]


def test_first_error_ends_the_copy_and_what_was_done_is_kept(manifest_of: Opener) -> None:
    source, target, manifest = filled(100), MemoryDisk(100 * UNIT), manifest_of(100 * UNIT)
    target.fail_at(60, QuotaExceeded("the pool is full"), {"write"})
    with pytest.raises(QuotaExceeded, match="pool is full"):
        copy(
            reader(source),
            writer(target),
            extents=reader(source).extents(),
            manifest=manifest,
            epoch="a",
            settings=CopySettings(lanes=1, request_bytes=UNIT, in_flight_bytes=4 * UNIT),
        )
    assert left_behind() == []
    assert manifest.cursor_bytes >= 50 * UNIT
    copy(reader(source), writer(target), extents=reader(source).extents(), manifest=manifest, epoch="a")
    assert_equal_and_known(source, target, manifest)


def test_an_error_of_a_callback_ends_the_copy(manifest_of: Opener) -> None:
    source, target, manifest = filled(50), MemoryDisk(50 * UNIT), manifest_of(50 * UNIT)

    def cancelled(progress: CopyProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(
            reader(source),
            writer(target),
            extents=reader(source).extents(),
            manifest=manifest,
            epoch="a",
            on_progress=cancelled,
        )
    assert left_behind() == []
    copy(reader(source), writer(target), extents=reader(source).extents(), manifest=manifest, epoch="a")
    assert_equal_and_known(source, target, manifest)


def test_callbacks_run_in_the_callers_thread_and_figures_add_up(manifest_of: Opener) -> None:
    source, target, manifest = filled(64, data=range(0, 64, 2)), MemoryDisk(64 * UNIT), manifest_of(64 * UNIT)
    seen: list[tuple[int, CopyProgress]] = []
    copy(
        reader(source),
        writer(target),
        extents=list(reader(source).extents()),
        manifest=manifest,
        epoch="a",
        on_progress=lambda progress: seen.append((threading.get_ident(), progress)),
    )
    assert {thread for thread, _ in seen} == {threading.get_ident()}
    last = seen[-1][1]
    assert (last.total_bytes, last.done_bytes, last.cursor_bytes) == (64 * UNIT, 64 * UNIT, 64 * UNIT)
    assert (last.sent_bytes, last.zeroed_bytes, last.eta_s) == (32 * UNIT, 32 * UNIT, 0.0)


def test_total_of_a_delta_is_its_list(manifest_of: Opener) -> None:
    source, target, manifest = filled(64), filled(64), manifest_of(64 * UNIT)
    seen: list[CopyProgress] = []
    copy(
        reader(source),
        writer(target),
        extents=[Extent(5, 10), Extent(9 * UNIT, UNIT)],
        manifest=manifest,
        epoch="d",
        on_progress=seen.append,
    )
    assert seen[0].total_bytes == 2 * UNIT
    assert seen[-1].done_bytes == 2 * UNIT


def test_devices_that_do_not_fit_are_refused(manifest_of: Opener) -> None:
    source, manifest = filled(4), manifest_of(4 * UNIT)
    with pytest.raises(PreconditionFailed, match="the source needs"):
        copy(reader(source), writer(MemoryDisk(3 * UNIT)), extents=[], manifest=manifest, epoch="a")
    with pytest.raises(PreconditionFailed, match="resized"):
        copy(reader(filled(5)), writer(MemoryDisk(5 * UNIT)), extents=[], manifest=manifest, epoch="a")
    with pytest.raises(PreconditionFailed, match="read-only"):
        copy(reader(source), reader(filled(4)), extents=[], manifest=manifest, epoch="a")


@pytest.mark.parametrize("bad", [[Extent(UNIT, 5), Extent(0, 5)], [Extent(0, 10), Extent(5, 10)], [Extent(0, 1 << 40)]])
def test_extents_out_of_order_or_outside_are_refused(manifest_of: Opener, bad: list[Extent]) -> None:
    source, manifest = filled(4), manifest_of(4 * UNIT)
    with pytest.raises(Unavailable, match="out of order"):
        copy(reader(source), writer(MemoryDisk(4 * UNIT)), extents=iter(bad), manifest=manifest, epoch="a")
    assert not manifest.complete


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="lanes"):
        CopySettings(lanes=0)
    with pytest.raises(ValueError, match="64 KiB"):
        CopySettings(request_bytes=512)


def test_target_is_flushed_before_digests_and_cursor(manifest_of: Opener) -> None:
    manifest, ledger = manifest_of(4 * UNIT), Ledger(0)
    manifest.begin("a")
    ledger.finish(Request(0, 0, UNIT, zero=False), b"d" * 16)

    def flush() -> None:
        assert manifest.get(0) is None
        assert manifest.cursor_bytes == 0
        ledger.finish(Request(1, UNIT, UNIT, zero=False), b"e" * 16)

    Checkpointer(ledger, manifest, flush).save()
    assert manifest.get(0) == b"d" * 16
    assert manifest.get(1) is None, "it was written while the flush ran: nothing is known of its durability"
    assert manifest.cursor_bytes == UNIT


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3000), max_size=30),
    kinds=st.lists(st.sampled_from(["data", "zeros", "unfinished"]), min_size=32, max_size=32),
    order=st.randoms(use_true_random=False),
    tail=st.integers(1, UNIT),
)
def test_a_checkpoint_records_what_finished_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], kinds: list[str], order: random.Random, tail: int
) -> None:
    units = 3001
    size_bytes = (units - 1) * UNIT + tail
    bounds = sorted({0, *cuts, units})
    expected = [UNKNOWN] * units
    finished = []
    for number, (first, end) in enumerate(pairwise(bounds)):
        if kinds[number] == "unfinished":
            continue
        zero = kinds[number] == "zeros"
        for unit in range(first, end):
            short = unit == units - 1
            expected[unit] = zero_digest(tail if short else UNIT) if zero else (unit + 1).to_bytes(16, "big")
        length = min(end * UNIT, size_bytes) - first * UNIT
        digests = None if zero else b"".join(expected[first:end])
        finished.append((Request(number, first * UNIT, length, zero), digests))
    order.shuffle(finished)
    ledger = Ledger(0)
    for request, digests in finished:
        ledger.finish(request, digests)
    with Manifest.open(tmp_path_factory.mktemp("m") / "manifest", size_bytes) as manifest:
        manifest.begin("a")
        Checkpointer(ledger, manifest, lambda: None).save()
        assert manifest.read(0, units) == b"".join(expected)
        written = {unit for first, count in manifest.written() for unit in range(first, first + count)}
        assert written == {unit for unit in range(units) if expected[unit] != UNKNOWN}


def test_cursor_waits_for_the_oldest_request() -> None:
    ledger = Ledger(UNIT)
    ledger.finish(Request(1, 5 * UNIT, UNIT, zero=False), b"x" * 16)
    assert ledger.collect()[1] == UNIT
    ledger.finish(Request(0, 3 * UNIT, UNIT, zero=True), None)
    assert ledger.collect()[1] == 6 * UNIT


def test_checkpoints_happen_while_copying(manifest_of: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "INTERVAL_S", 0.01)
    source, target, manifest = filled(64), MemoryDisk(64 * UNIT), manifest_of(64 * UNIT)
    cursors: list[int] = []
    copy(
        reader(source),
        writer(target),
        extents=reader(source).extents(),
        manifest=manifest,
        epoch="a",
        settings=SMALL,
        governor=Governor(32 * UNIT),
        on_progress=lambda progress: cursors.append(progress.cursor_bytes),
    )
    assert any(0 < cursor < 64 * UNIT for cursor in cursors)


pieces = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 900), st.booleans()), max_size=12)


@given(pieces=pieces, grain=st.sampled_from([1, 64, 100]), tail=st.integers(0, 99))
def test_widening_covers_all_and_never_calls_data_zero(
    pieces: list[tuple[int, int, bool]], grain: int, tail: int
) -> None:
    extents, at = [], 0
    for gap, length, zero in pieces:
        extents.append(Extent(at + gap, length, zero))
        at += gap + length
    size = at + tail
    wide = list(widen(extents, grain, size))
    zeros = {byte for extent in extents if extent.zero for byte in range(extent.start, extent.end)}
    wanted = {byte for extent in extents for byte in range(extent.start, extent.end)}
    got: set[int] = set()
    for piece in wide:
        span = range(piece.start, piece.end)
        assert piece.length > 0
        assert got.isdisjoint(span)
        assert piece.start % grain == 0
        assert piece.end % grain == 0 or piece.end == size
        got.update(span)
        if piece.zero:
            assert zeros.issuperset(span)
    assert got >= wanted
    cut = list(requests(extents, size_bytes=size, grain=grain, request_bytes=3 * grain, cursor_bytes=0))
    assert {byte for request in cut for byte in range(request.offset, request.end)} == got
    assert [request.number for request in cut] == list(range(len(cut)))
    assert all(request.zero or request.length <= 3 * grain for request in cut)
