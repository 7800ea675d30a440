"""What a lab guest wrote, read back from a disk image or from its console.

A record is 4 KiB: the same line in each of eight 512-byte sectors, ``WBREC1 kind= boot= n= up= rtc=``, and in the last
sector also the md5 of the seven before. Record ``n`` lies in slot ``n mod slots`` from 1 MiB on. The guest prints the
line on its console only after the write was flushed, so console lines are acknowledgements: each must be on disk.

Time: ``up`` is the guest's uptime in s (10 ms steps), ``rtc`` its real time clock in whole s since the epoch, QEMU's
copy of the host's clock cut to the second when the VM was started. See ``outage``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.errors import LabError

MIB = 1 << 20
BLOCK_BYTES = 4096
SECTOR_BYTES = 512
RECORDS_OFFSET = MIB
LINE = re.compile(
    r"WBREC1 kind=(?P<kind>run|final) boot=(?P<boot>\d+) n=(?P<n>\d+) up=(?P<up>\d+\.\d+) rtc=(?P<rtc>\d+)"
)
HEAD = re.compile(r"WBDISK1 boots=(\d+) records=(\d+)")


@dataclass(frozen=True)
class Record:
    """One record."""

    n: int
    boot: int
    kind: str
    """``run``, or ``final`` for the one written on a clean stop."""
    up_s: float
    rtc_s: int


@dataclass(frozen=True)
class ImageRecords:
    """All records of one disk."""

    boots: int
    slots: int
    records: tuple[Record, ...]
    """Good records by ascending number."""
    bad_slots: tuple[int, ...]
    """Slots with a torn or damaged record."""
    misplaced_slots: tuple[int, ...]
    """Slots with a good record that belongs elsewhere."""

    @property
    def last(self) -> int:
        """Number of the newest record, -1 without any."""
        return self.records[-1].n if self.records else -1

    def gaps(self) -> list[int]:
        """Return numbers missing between the oldest one that must still be there and the newest."""
        present = {record.n for record in self.records}
        return [n for n in range(max(0, self.last - self.slots + 1), self.last + 1) if n not in present]

    def lost(self, acknowledged: Sequence[Record]) -> list[Record]:
        """Return acknowledged records that are not on this disk, overwritten ones (older than the ring) left out.

        A record numbered past the newest one here is lost too: that is what an early copy looks like.
        """
        present = set(self.records)
        newest = max((record.n for record in acknowledged), default=-1)
        oldest = max(newest, self.last) - self.slots + 1
        return [record for record in acknowledged if record.n >= oldest and record not in present]


def _record(match: re.Match[str]) -> Record:
    return Record(int(match["n"]), int(match["boot"]), match["kind"], float(match["up"]), int(match["rtc"]))


def parse_block(block: bytes) -> Record | None:
    """Return the record in a 4 KiB block, or None if it is torn or damaged."""
    lines = [
        block[at : at + SECTOR_BYTES].decode("ascii", "replace").rstrip() for at in range(0, BLOCK_BYTES, SECTOR_BYTES)
    ]
    match = LINE.fullmatch(lines[0])
    digest = hashlib.md5(block[: 7 * SECTOR_BYTES]).hexdigest()
    last, _, stated = lines[7].rpartition(" md5=")
    if match is None or last.rstrip() != lines[0] or stated != digest:
        return None
    return _record(match)


def parse_disk(data: bytes) -> ImageRecords:
    """Read the records from a disk's bytes, from the guest's ``wb.base`` on.

    Raises LabError when no guest has ever booted with it.
    """
    head = HEAD.match(data[:BLOCK_BYTES].decode("ascii", "replace"))
    if head is None:
        raise LabError("not a disk of a lab guest: block 0 has no boot counter")
    boots, slots = int(head[1]), int(head[2])
    good: list[Record] = []
    bad: list[int] = []
    misplaced: list[int] = []
    for slot in range(slots):
        start = RECORDS_OFFSET + slot * BLOCK_BYTES
        block = data[start : start + BLOCK_BYTES]
        if not block.strip(b"\0"):
            continue
        record = parse_block(block)
        if record is None:
            bad.append(slot)
        elif record.n % slots != slot:
            misplaced.append(slot)
        else:
            good.append(record)
    good.sort(key=lambda record: record.n)
    return ImageRecords(boots, slots, tuple(good), tuple(bad), tuple(misplaced))


def read_image(path: Path, *, max_slots: int = 65536) -> ImageRecords:
    """Read the records from a raw or qcow2 image (recognised by content) through ``qemu-img``.

    Of an image in use (qemu-img -U) the result is as of some moment in between.
    """
    blocks = str((RECORDS_OFFSET + max_slots * BLOCK_BYTES) // MIB)
    source_format = "qcow2" if path.open("rb").read(4) == b"QFI\xfb" else "raw"
    with tempfile.TemporaryDirectory(prefix="wb-records-") as scratch:
        target = Path(scratch) / "head.raw"
        arguments = ("-f", source_format, "-O", "raw", "bs=1M", f"count={blocks}", f"if={path}", f"of={target}")
        done = subprocess.run(["qemu-img", "dd", "-U", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"cannot read {path}: {done.stderr.strip()}")
        return parse_disk(target.read_bytes())


def parse_console(text: str) -> list[Record]:
    """Return the records a console log acknowledges, in order; a line cut short by a crash is left out."""
    matches = (LINE.search(line) for line in text.split("\n")[:-1])
    return [_record(match) for match in matches if match is not None]


def _epoch_of_boot(records: Sequence[Record]) -> float:
    """Return the guest clock's reading at uptime 0, in s since the epoch, from all records of one boot.

    Each record says that the clock, cut to a second, was ``rtc`` at ``up``: the offset lies in [rtc-up, rtc+1-up).
    Intersecting many of these leaves a few 10 ms. While a VM is paused its clock runs on and its uptime does not; then
    the intersection is empty and only the records on this side of the pause count.
    """
    low, high = records[0].rtc_s - records[0].up_s, records[0].rtc_s + 1 - records[0].up_s
    for record in records[1:]:
        narrower = max(low, record.rtc_s - record.up_s), min(high, record.rtc_s + 1 - record.up_s)
        if narrower[0] > narrower[1]:
            break
        low, high = narrower
    return (low + high) / 2


@dataclass(frozen=True)
class Outage:
    """The time without service, as the guest's own records tell it."""

    seconds: float
    uncertainty_s: float
    last_before: Record
    first_after: Record


def outage(records: Sequence[Record], *, boot: int) -> Outage:
    """Return the time from the last record before boot number ``boot`` to the first record of it.

    Uncertainty is 1 s: at VM start QEMU sets the clock to the host's whole second, which loses [0, 1) s once before
    and once after. Raises LabError when one side has no record.
    """
    before = [record for record in records if record.boot == boot - 1]
    after = [record for record in records if record.boot == boot]
    if not before or not after:
        raise LabError(f"no records of boot {boot - 1 if not before else boot}")
    ended = _epoch_of_boot(before[::-1]) + before[-1].up_s
    began = _epoch_of_boot(after) + after[0].up_s
    return Outage(began - ended, 1.0, before[-1], after[0])
