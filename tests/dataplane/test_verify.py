"""Verification finds what is wrong, says where, and does not pass when it cannot know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.dataplane.disks import UNIT, reader, writer
from tests.dataplane.test_copier import filled
from whimbrel.dataplane import (
    Governor,
    Manifest,
    MemoryDisk,
    ScanProgress,
    ScanStopped,
    compare,
    copy,
    sample_unchanged,
    verify_round,
)
from whimbrel.dataplane.hashscan import changed_by_hash
from whimbrel.dataplane.sampling import Sampler
from whimbrel.errors import DataMismatch, PreconditionFailed, Unavailable
from whimbrel.model.extent import Extent

Opener = Callable[[int], Manifest]


def copied(manifest_of: Opener, source: MemoryDisk) -> tuple[MemoryDisk, Manifest]:
    target, manifest = MemoryDisk(source.size_bytes), manifest_of(source.size_bytes)
    copy(
        reader(source),
        writer(target),
        extents=reader(source).extents(),
        manifest=manifest,
        epoch="baseline",
        target_is_zero=True,
    )
    return target, manifest


def test_round_is_read_back(manifest_of: Opener) -> None:
    target, manifest = copied(manifest_of, filled(100, data=range(50, 60)))
    result = verify_round(reader(target), manifest, epoch="baseline")
    assert result.verified_bytes == 100 * UNIT
    assert result.hole_bytes == 90 * UNIT
    before = target.requests
    assert verify_round(reader(target), manifest).digest_hex == result.digest_hex
    assert target.requests > before


def test_only_the_round_is_read_back(manifest_of: Opener) -> None:
    source = filled(100)
    target, manifest = copied(manifest_of, source)
    copy(reader(source), writer(target), extents=[Extent(7 * UNIT, 2 * UNIT)], manifest=manifest, epoch="round-1")
    assert verify_round(reader(target), manifest).verified_bytes == 2 * UNIT
    target.write(50 * UNIT, b"elsewhere")
    verify_round(reader(target), manifest)
    with pytest.raises(DataMismatch, match="1 units"):
        verify_round(reader(target), manifest, [Extent(50 * UNIT + 5, 10)])


def test_mismatch_names_the_first_offsets(manifest_of: Opener) -> None:
    target, manifest = copied(manifest_of, filled(100, data=range(0, 100, 3)))
    for unit in (4, 30, *range(60, 90)):
        target.write(unit * UNIT + 100, b"flipped")
    with pytest.raises(DataMismatch, match="32 units") as caught:
        verify_round(reader(target), manifest)
    offsets = [4, 30, *range(60, 74)]
    assert caught.value.evidence["offsets"] == str([unit * UNIT for unit in offsets])


def test_verification_never_passes_without_knowledge(manifest_of: Opener) -> None:
    source = filled(10)
    target, manifest = copied(manifest_of, source)
    with pytest.raises(PreconditionFailed, match="not at 'round-9'"):
        verify_round(reader(target), manifest, epoch="round-9")
    manifest.forget(3, 1)
    with pytest.raises(PreconditionFailed, match=f"offset {3 * UNIT}"):
        verify_round(reader(target), manifest)
    manifest.begin("round-1")
    with pytest.raises(PreconditionFailed, match="not complete"):
        verify_round(reader(target), manifest)


def test_compare_full(manifest_of: Opener) -> None:
    source = filled(300, data=range(100, 140))
    target, manifest = copied(manifest_of, source)
    result = compare(reader(source), reader(target))
    assert result.equal
    assert (result.compared_bytes, result.skipped_zero_bytes) == (40 * UNIT, 260 * UNIT)
    assert result.digest_hex == manifest.digest()
    source.write(5 * UNIT, b"only here")
    target.write(200 * UNIT + 9, b"only there")
    target.write(101 * UNIT, b"other")
    result = compare(reader(source), reader(target))
    assert result.mismatches == (5 * UNIT, 101 * UNIT, 200 * UNIT)
    assert (result.mismatch_count, result.equal, result.mode) == (3, False, "full")


def test_compare_counts_all_mismatches_and_lists_sixteen() -> None:
    result = compare(reader(filled(40, seed=1)), reader(filled(40, seed=2)))
    assert result.mismatch_count == 40
    assert result.mismatches == tuple(unit * UNIT for unit in range(16))


def test_compare_sampled_is_repeatable_and_finds_gross_differences() -> None:
    one, two = filled(400, data=range(200, 400), seed=1), filled(400, data=range(200, 400), seed=2)
    results = [compare(reader(one), reader(two), mode="sampled", sample_fraction=0.2, seed=7) for _ in range(2)]
    assert results[0] == results[1]
    assert 10 * UNIT < results[0].compared_bytes < 80 * UNIT
    assert results[0].mismatch_count == results[0].compared_bytes // UNIT
    assert "20.00%" in results[0].sample
    assert "seed 7" in results[0].sample
    other = compare(reader(one), reader(two), mode="sampled", sample_fraction=0.2, seed=8)
    assert other.mismatches != results[0].mismatches
    everything = compare(reader(one), reader(two), mode="sampled", sample_fraction=1.0)
    assert everything.mismatch_count == 200


def test_compare_of_a_longer_target_with_larger_blocks() -> None:
    source, target = MemoryDisk(2 * UNIT + 100), MemoryDisk(3 * UNIT, block_bytes=4096)
    for disk in (source, target):
        disk.write(0, b"a" * (2 * UNIT + 100))
    assert compare(reader(source), reader(target)).equal
    target.write(2 * UNIT + 99, b"b")
    assert compare(reader(source), reader(target)).mismatches == (2 * UNIT,)
    with pytest.raises(PreconditionFailed, match="the source"):
        compare(reader(target), reader(source))


def test_sampler_takes_its_share_and_everything() -> None:
    assert list(Sampler(1.0, 3).pick(5)) == [0, 1, 2, 3, 4]
    sampler = Sampler(0.01, 5)
    taken = sum(len(list(sampler.pick(1000))) for _ in range(1000))
    assert 9_000 < taken < 11_000
    with pytest.raises(ValueError, match="fraction"):
        Sampler(0, 1)


def test_tracking_that_lies_is_found(manifest_of: Opener) -> None:
    source = filled(200, data=range(100))
    _, manifest = copied(manifest_of, source)
    source.write(10 * UNIT, b"tracked")
    source.write(20 * UNIT, b"not tracked")
    source.write(150 * UNIT, b"was a hole")
    told = [Extent(10 * UNIT + 3, 4)]
    assert sample_unchanged(reader(source), manifest, told, fraction=1.0, seed=1) == [20 * UNIT, 150 * UNIT]
    honest = [Extent(10 * UNIT, 1), Extent(20 * UNIT, UNIT), Extent(149 * UNIT, 2 * UNIT)]
    assert sample_unchanged(reader(source), manifest, honest, fraction=1.0, seed=1) == []
    assert len(sample_unchanged(reader(source), manifest, [], fraction=0.01, seed=1)) <= 3


def test_hash_scan_does_not_read_holes_and_takes_unknown_for_changed(manifest_of: Opener) -> None:
    source = filled(4000, data=range(100, 110))
    manifest = manifest_of(source.size_bytes)
    everything = list(changed_by_hash(reader(source), manifest))
    assert sum(extent.length for extent in everything) == 4000 * UNIT
    assert [extent for extent in everything if not extent.zero] == [Extent(100 * UNIT, 10 * UNIT)]
    source.requests = 0
    target = MemoryDisk(source.size_bytes)
    copy(reader(source), writer(target), extents=everything, manifest=manifest, epoch="b", target_is_zero=True)
    source.requests = 0
    assert list(changed_by_hash(reader(source), manifest)) == []
    assert source.requests <= 2
    some = [Extent(105 * UNIT, UNIT), Extent(300 * UNIT, UNIT, zero=True)]
    source.write(100 * UNIT, b"outside the search")
    source.write(105 * UNIT, b"inside")
    assert list(changed_by_hash(reader(source), manifest, extents=some)) == [Extent(105 * UNIT, UNIT)]


def test_scans_stop_and_report(manifest_of: Opener) -> None:
    source = filled(400)
    _, manifest = copied(manifest_of, source)
    seen: list[ScanProgress] = []
    scan = changed_by_hash(
        reader(source),
        manifest,
        governor=Governor(50 * UNIT),
        on_progress=seen.append,
        should_stop=lambda: len(seen) >= 2,
    )
    with pytest.raises(ScanStopped):
        list(scan)
    assert seen[0].total_bytes == 400 * UNIT
    assert 0 < seen[-1].read_bytes < 400 * UNIT


def test_scan_raises_the_devices_error_and_leaves_no_thread(manifest_of: Opener) -> None:
    import threading

    source = filled(200)
    _, manifest = copied(manifest_of, source)
    source.fail_at(5, Unavailable("the link broke"), {"read"})
    with pytest.raises(Unavailable, match="link broke"):
        list(changed_by_hash(reader(source), manifest))
    half = changed_by_hash(reader(filled(300, seed=5)), manifest_of_other(manifest))
    next(half)
    del half
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("scan-")] == []


def manifest_of_other(manifest: Manifest) -> Manifest:
    return Manifest.open(manifest.path.with_name("other"), 300 * UNIT)
