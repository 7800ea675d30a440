"""The reader of records finds what is wrong with a disk, because only then does it prove that nothing is."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labs.kvm.errors import LabError
from labs.kvm.records import (
    BLOCK_BYTES,
    RECORDS_OFFSET,
    Record,
    outage,
    parse_block,
    parse_console,
    parse_disk,
    read_image,
)

SLOTS = 16


def line_of(record: Record) -> str:
    return f"WBREC1 kind={record.kind} boot={record.boot} n={record.n} up={record.up_s:.2f} rtc={record.rtc_s}"


def block_of(record: Record) -> bytes:
    body = f"{line_of(record):<511}\n".encode() * 7
    return body + f"{line_of(record):<474} md5={hashlib.md5(body).hexdigest()}\n".encode()


def record(n: int, boot: int = 1, kind: str = "run") -> Record:
    return Record(n, boot, kind, round(2 + n / 5, 2), 1_700_000_000 + n // 5)


def disk_of(records: list[Record], boots: int = 1, slots: int = SLOTS) -> bytearray:
    disk = bytearray(RECORDS_OFFSET + slots * BLOCK_BYTES)
    disk[:BLOCK_BYTES] = f"{f'WBDISK1 boots={boots} records={slots}':<4095}\n".encode()
    for entry in records:
        start = RECORDS_OFFSET + entry.n % slots * BLOCK_BYTES
        disk[start : start + BLOCK_BYTES] = block_of(entry)
    return disk


@given(count=st.integers(0, 60))
def test_a_ring_of_any_age_has_no_gaps(count: int) -> None:
    written = [record(n) for n in range(count)]
    found = parse_disk(bytes(disk_of(written)))
    assert found.records == tuple(written[-SLOTS:])
    assert found.last == count - 1
    assert found.gaps() == []
    assert found.bad_slots == found.misplaced_slots == ()
    assert found.lost(written) == []


@given(count=st.integers(1, 60), data=st.data())
def test_a_record_taken_away_is_a_gap_and_lost(count: int, data: st.DataObject) -> None:
    written = [record(n) for n in range(count)]
    gone = data.draw(st.sampled_from(written[-SLOTS:]))
    disk = disk_of(written)
    start = RECORDS_OFFSET + gone.n % SLOTS * BLOCK_BYTES
    disk[start : start + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    found = parse_disk(bytes(disk))
    assert found.lost(written) == [gone], "also when it was the newest, which leaves no gap"
    if gone != written[-1]:
        assert found.gaps() == [gone.n]
    else:  # seen from the newest one left, a full ring lacks the one that the lost one had overwritten
        assert found.gaps() == ([count - 1 - SLOTS] if count > SLOTS else [])


@given(at=st.integers(0, BLOCK_BYTES - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(at: int, bit: int) -> None:
    block = bytearray(block_of(record(3)))
    assert parse_block(bytes(block)) == record(3)
    block[at] ^= 1 << bit
    changed = parse_block(bytes(block))
    # Blanks around the last sector's fields carry nothing; whatever is read must still be the record.
    assert changed is None or (changed == record(3) and at >= 7 * 512)


@given(sectors=st.integers(1, 7))
def test_a_torn_write_is_found(sectors: int) -> None:
    old, new = block_of(record(0)), block_of(record(SLOTS))
    assert parse_block(new[: sectors * 512] + old[sectors * 512 :]) is None


def test_an_older_point_in_time_loses_what_was_acknowledged_since() -> None:
    acknowledged = [record(n) for n in range(30)]
    found = parse_disk(bytes(disk_of(acknowledged[:25])))
    assert [entry.n for entry in found.lost(acknowledged)] == [25, 26, 27, 28, 29]


def test_a_record_in_a_slot_not_its_own_is_misplaced() -> None:
    disk = disk_of([record(0), record(1)])
    disk[RECORDS_OFFSET + 5 * BLOCK_BYTES :][:BLOCK_BYTES] = b""
    start = RECORDS_OFFSET + 5 * BLOCK_BYTES
    disk[start : start + BLOCK_BYTES] = block_of(record(1))
    found = parse_disk(bytes(disk))
    assert found.misplaced_slots == (5,)
    assert [entry.n for entry in found.records] == [0, 1]


def test_a_disk_no_guest_has_booted_with_is_refused() -> None:
    with pytest.raises(LabError, match="no boot counter"):
        parse_disk(bytes(RECORDS_OFFSET))


def test_the_console_gives_whole_lines_only() -> None:
    text = f"noise\n{line_of(record(0))}\r\nWB BUTTON\n[ 1.0] {line_of(record(1))}\n{line_of(record(2))[:-3]}"
    assert parse_console(text) == [record(0), record(1)]


@pytest.mark.interop
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_images_of_either_format_read_the_same(tmp_path: Path, image_format: str) -> None:
    written = [record(n) for n in range(20)]
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.img"
    raw.write_bytes(disk_of(written) + bytes(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, raw, image], check=True)
    assert read_image(image).records == tuple(written[-SLOTS:])


@pytest.mark.interop
def test_a_missing_image_is_said(tmp_path: Path) -> None:
    bad = tmp_path / "bad.qcow2"
    bad.write_bytes(b"QFI\xfb" + bytes(100))
    with pytest.raises(LabError, match="cannot read"):
        read_image(bad)


@given(start_a=st.floats(0, 1000), start_b=st.floats(1100, 2000), steps=st.integers(10, 60), rate=st.floats(1.5, 20))
def test_the_outage_is_right_within_its_uncertainty(start_a: float, start_b: float, steps: int, rate: float) -> None:
    def boot(number: int, powered_on: float, first: int) -> tuple[list[Record], list[float]]:
        rtc_at_start = int(powered_on)  # QEMU drops the fraction
        ups = [round(2 + step / rate, 2) for step in range(steps)]
        entries = [
            Record(first + step, number, "run", up, int(rtc_at_start + up + 1e-9)) for step, up in enumerate(ups)
        ]
        return entries, [powered_on + up for up in ups]

    before, times_before = boot(1, start_a, 0)
    after, times_after = boot(2, start_b, steps)
    measured = outage(before + after, boot=2)
    truth = times_after[0] - times_before[-1]
    slack = 1 / rate + 0.05  # how well the second's edge is known from records this far apart
    assert abs(measured.seconds - truth) <= measured.uncertainty_s + slack
    assert measured.last_before == before[-1]
    assert measured.first_after == after[0]


def test_a_pause_of_the_vm_does_not_spoil_the_clock() -> None:
    # 100 s of pause: the real time clock ran on, uptime did not.
    early = [Record(n, 1, "run", 2 + n / 5, 1000 + int(2 + n / 5)) for n in range(20)]
    late = [Record(n, 1, "run", 2 + n / 5, 1100 + int(2 + n / 5)) for n in range(20, 40)]
    after = [Record(n, 2, "run", 2 + (n - 40) / 5, 1200 + int(2 + (n - 40) / 5)) for n in range(40, 60)]
    measured = outage(early + late + after, boot=2)
    assert measured.seconds == pytest.approx(1202 - (1100 + 2 + 39 / 5), abs=1)


def test_an_outage_needs_both_sides() -> None:
    with pytest.raises(LabError, match="no records of boot 2"):
        outage([record(1)], boot=2)
    with pytest.raises(LabError, match="no records of boot 1"):
        outage([record(1, boot=2)], boot=2)
