"""The manifest file: what survives, what is refused, and what a huge empty disk costs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.disks import UNIT, kill
from whimbrel.dataplane import Manifest, ManifestCorrupt, discard_manifest, disown
from whimbrel.dataplane.digests import REGION_BYTES, REGION_UNITS, DiskDigest, unit_digests, zero_digest
from whimbrel.dataplane.header import SLOT_BYTES
from whimbrel.errors import Conflict, PreconditionFailed, Unavailable
from whimbrel.model.extent import Extent

TIB = 1 << 40
Opener = Callable[[int], Manifest]


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_digests_epoch_and_cursor_survive_reopening(manifest_of: Opener) -> None:
    first = manifest_of(10 * UNIT)
    assert first.begin("baseline") == 0
    first.record(2, digest(7) + digest(8))
    first.checkpoint(4 * UNIT)
    kill(first)
    again = manifest_of(10 * UNIT)
    assert (again.epoch, again.cursor_bytes, again.complete) == ("baseline", 4 * UNIT, False)
    assert [again.get(unit) for unit in range(5)] == [None, None, digest(7), digest(8), None]
    assert list(again.known_units()) == [2, 3]
    assert again.begin("baseline") == 4 * UNIT


def test_new_epoch_starts_at_zero_and_keeps_digests(manifest_of: Opener) -> None:
    manifest = manifest_of(10 * UNIT)
    manifest.begin("baseline")
    manifest.set(1, digest(5))
    manifest.checkpoint(10 * UNIT, complete=True)
    assert manifest.complete
    assert manifest.begin("round-1") == 0
    assert not manifest.complete
    assert manifest.get(1) == digest(5)
    assert list(manifest.written()) == []


def test_marks_of_the_old_epoch_are_cleared_even_if_killed_while_clearing(
    manifest_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(10 * UNIT)
    manifest.begin("baseline")
    manifest.record(0, digest(1) * 3)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "_clear_marks", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            manifest.begin("round-1")
    kill(manifest)
    again = manifest_of(10 * UNIT)
    assert again.epoch == "round-1"
    assert list(again.written()) == []


def test_one_tib_of_zeros_costs_little_and_digests_truly(manifest_of: Opener) -> None:
    manifest = manifest_of(TIB + 5)
    manifest.begin("baseline")
    manifest.record_zeros(0, manifest.unit_count)
    manifest.checkpoint(TIB + 5, complete=True)
    assert manifest.path.stat().st_blocks * 512 < 8 << 20
    assert manifest.get(12345) == zero_digest()
    assert manifest.get(manifest.unit_count - 1) == zero_digest(5)
    whole = DiskDigest(TIB + 5)
    whole.add_zeros(manifest.unit_count)
    assert manifest.digest() == whole.hexdigest()
    assert sum(units for _, units in manifest.written()) == manifest.unit_count


def test_unit_inside_zero_region_can_be_set_and_forgotten(manifest_of: Opener) -> None:
    manifest = manifest_of(3 * REGION_BYTES)
    manifest.begin("a")
    manifest.record_zeros(0, 3 * REGION_UNITS)
    assert manifest.forget(REGION_UNITS + 3, 2)
    assert manifest.get(REGION_UNITS + 3) is None
    assert manifest.get(REGION_UNITS + 5) == zero_digest()
    manifest.set(REGION_UNITS + 3, digest(9))
    assert manifest.get(REGION_UNITS + 3) == digest(9)
    assert manifest.forget(REGION_UNITS, REGION_UNITS)
    assert not manifest.forget(REGION_UNITS, REGION_UNITS)
    assert manifest.get(REGION_UNITS + 3) is None
    assert manifest.get(0) == zero_digest()


@given(
    runs=st.lists(st.tuples(st.integers(0, 2999), st.integers(1, 1500), st.sampled_from("rzf")), max_size=12),
    seed=st.integers(0, 1000),
)
def test_any_sequence_behaves_like_a_dictionary(
    runs: list[tuple[int, int, str]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = 3000 * UNIT - 77
    rng = random.Random(seed)
    model: dict[int, bytes] = {}
    marked: set[int] = set()
    with Manifest.open(tmp_path_factory.mktemp("m") / "m", size) as manifest:
        manifest.begin("e")
        for first, wanted, action in runs:
            count = min(wanted, 3000 - first)
            units = range(first, first + count)
            if action == "r":
                data = rng.randbytes(16 * count)
                manifest.record(first, data)
                model.update({unit: data[at * 16 : at * 16 + 16] for at, unit in enumerate(units)})
                marked.update(units)
            elif action == "z":
                manifest.record_zeros(first, count)
                model.update({unit: zero_digest(UNIT - 77) if unit == 2999 else zero_digest() for unit in units})
                marked.update(units)
            else:
                assert manifest.forget(first, count) == any(unit in model for unit in units)
                for unit in units:
                    model.pop(unit, None)
        assert list(manifest.known_units()) == sorted(model)
        assert [manifest.get(unit) for unit in range(3000)] == [model.get(unit) for unit in range(3000)]
        assert {unit for first, count in manifest.written() for unit in range(first, first + count)} == marked


def test_second_opener_is_told_to_wait(manifest_of: Opener) -> None:
    manifest = manifest_of(UNIT)
    with pytest.raises(Unavailable, match="another copy"):
        manifest_of(UNIT)
    manifest.close()
    manifest_of(UNIT)


def test_resized_disk_is_refused(manifest_of: Opener) -> None:
    manifest_of(UNIT).close()
    with pytest.raises(PreconditionFailed, match="resized"):
        manifest_of(2 * UNIT)


def test_torn_header_write_falls_back_to_the_older_slot(manifest_of: Opener) -> None:
    manifest = manifest_of(10 * UNIT)
    manifest.begin("a")
    manifest.checkpoint(2 * UNIT)
    generation = manifest._header.generation
    manifest.close()
    with manifest.path.open("r+b") as file:
        file.seek(generation % 2 * SLOT_BYTES + 30)
        file.write(b"torn")
    again = manifest_of(10 * UNIT)
    assert again.epoch == "a"
    assert again.cursor_bytes == 0


@pytest.mark.parametrize("at", [0, 8, 20, 60])
def test_both_slots_damaged_is_corrupt(manifest_of: Opener, at: int) -> None:
    manifest = manifest_of(10 * UNIT)
    manifest.begin("some epoch with a name")
    manifest.close()
    with manifest.path.open("r+b") as file:
        for slot in range(2):
            file.seek(slot * SLOT_BYTES + max(at, 12))
            file.write(os.urandom(40))
    with pytest.raises(ManifestCorrupt, match="damaged"):
        manifest_of(10 * UNIT)
    discard_manifest(manifest.path)
    assert manifest_of(10 * UNIT).epoch == ""


def test_truncated_and_damaged_tables_are_corrupt(manifest_of: Opener) -> None:
    manifest = manifest_of(10 * UNIT)
    manifest.close()
    with manifest.path.open("r+b") as file:
        file.seek(2 * SLOT_BYTES)
        file.write(b"\x07")
    with pytest.raises(ManifestCorrupt, match="region table"):
        manifest_of(10 * UNIT)
    with manifest.path.open("r+b") as file:
        file.truncate(10000)
    with pytest.raises(ManifestCorrupt, match="10000"):
        manifest_of(10 * UNIT)


def test_empty_and_foreign_files(manifest_of: Opener, tmp_path: Path) -> None:
    path = tmp_path / "disk.manifest"
    path.touch()
    with pytest.raises(ManifestCorrupt, match="no header"):
        manifest_of(UNIT)
    path.write_bytes(b"somebody's notes" * 1000)
    with pytest.raises(Conflict, match="not a manifest"):
        manifest_of(UNIT)
    assert path.read_bytes().startswith(b"somebody's notes")


def test_failed_open_leaves_no_lock_and_no_temporary_file(manifest_of: Opener, tmp_path: Path) -> None:
    manifest_of(UNIT).close()
    with pytest.raises(PreconditionFailed):
        manifest_of(UNIT * 2)
    assert manifest_of(UNIT).size_bytes == UNIT
    assert [path.name for path in tmp_path.iterdir()] == ["disk.manifest"]


def test_discard_removes_the_file(manifest_of: Opener) -> None:
    manifest = manifest_of(UNIT)
    manifest.discard()
    assert not manifest.path.exists()


def test_epoch_digest_depends_on_what_was_written_and_not_on_the_order(manifest_of: Opener, tmp_path: Path) -> None:
    one = manifest_of(3000 * UNIT)
    one.begin("a")
    one.record(5, digest(1))
    one.record(2000, digest(2))
    with Manifest.open(tmp_path / "other", 3000 * UNIT) as two:
        two.begin("b")
        two.record(2000, digest(2))
        two.record(5, digest(1))
        assert one.epoch_digest() == two.epoch_digest()
        two.record(6, digest(3))
        assert one.epoch_digest() != two.epoch_digest()


@given(data=st.binary(max_size=300), cut_at=st.integers(0, 5))
def test_disk_digest_is_that_of_the_bytes_however_it_is_fed(data: bytes, cut_at: int) -> None:
    body = bytes(UNIT) * 3 + data
    fed = DiskDigest(len(body))
    fed.add_zeros(min(cut_at, 3))
    fed.add(unit_digests(memoryview(body)[min(cut_at, 3) * UNIT :]))
    whole = DiskDigest(len(body))
    whole.add(unit_digests(memoryview(body)))
    assert fed.hexdigest() == whole.hexdigest()


def test_disk_digest_refuses_to_answer_early() -> None:
    with pytest.raises(ValueError, match="0 of 2"):
        DiskDigest(UNIT + 1).hexdigest()


@given(st.data())
def test_what_is_disowned_is_unknown_and_the_rest_is_not(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 20 * UNIT))
    units = -(-size // UNIT)
    bounds = sorted(data.draw(st.sets(st.integers(0, size), max_size=8)))
    extents = [Extent(start, end - start) for start, end in zip(bounds[::2], bounds[1::2], strict=False)]
    path = tmp_path_factory.mktemp("disown") / "disk.manifest"
    with Manifest.open(path, size) as manifest:
        for unit in range(units):
            manifest.record(unit, digest(unit + 1))
    disown(path, size, extents)
    touched = {unit for each in extents for unit in range(each.start // UNIT, (each.end - 1) // UNIT + 1)}
    with Manifest.open(path, size) as manifest:
        assert {unit for unit in range(units) if manifest.get(unit) is None} == touched


def test_disowning_without_a_manifest_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.manifest"
    disown(path, 10 * UNIT, [Extent(0, UNIT)])
    assert not path.exists()
    path.write_bytes(b"a letter" * 10000)
    with pytest.raises(Conflict):
        disown(path, 10 * UNIT, [Extent(0, UNIT)])


def test_a_manifest_that_a_copy_holds_is_not_disowned(manifest_of: Opener) -> None:
    held = manifest_of(10 * UNIT)
    with pytest.raises(Unavailable):
        disown(held.path, 10 * UNIT, [Extent(0, UNIT)])
    kill(held)
    held.path.write_bytes(held.path.read_bytes()[:-1])
    disown(held.path, 10 * UNIT, [Extent(0, UNIT)])
    assert not held.path.exists()
