"""What is left of a journal when its writer dies, and what the next writer makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stream.test_journal_model import JournalMachine
from whimbrel.errors import Conflict
from whimbrel.stream.mapfile import Header, fingerprint
from whimbrel.stream.protect.change import Change
from whimbrel.stream.protect.journal import Journal, open_journal
from whimbrel.stream.protect.record import RECORD_BYTES
from whimbrel.stream.protect.segment import HEADER_BYTES

BLOCK = 512
ENTRY = RECORD_BYTES + BLOCK
HEADER = Header(4096, 1 << 20, bytes(16), fingerprint("s"), fingerprint("t"))


def opened(path: Path, *, host_crashed: bool = False) -> Journal:
    return open_journal(path, HEADER, untouched=not path.exists(), host_crashed=host_crashed)


def put(journal: Journal, *letters: bytes) -> None:
    journal.put([Change("write", 0, BLOCK, memoryview(letter * BLOCK)) for letter in letters])


def held(journal: Journal) -> list[bytes]:
    """The first byte of each change that the shadow lacks."""
    found = []
    while taken := journal.take(1 << 20):
        found += [bytes(change.data[:1]) for _, change in taken if change.data is not None]
        journal.note(taken[-1][0].number)
    return found


def file_of(path: Path) -> Path:
    (only,) = path.glob("*.segment")
    return only


def test_what_lay_behind_a_gap_does_not_come_back(tmp_path: Path) -> None:
    """After a crash of the host: what comes next fills the gap, and an old record would follow it without a seam."""
    path = tmp_path / "j"
    journal = opened(path)
    put(journal, b"a")
    journal.sync()
    put(journal, b"b")
    put(journal, b"c")
    journal.close()
    content = bytearray(file_of(path).read_bytes())
    content[HEADER_BYTES + ENTRY : HEADER_BYTES + 2 * ENTRY] = bytes(ENTRY)
    file_of(path).write_bytes(content)

    journal = opened(path, host_crashed=True)
    assert journal.last == 1
    put(journal, b"d")
    journal.close()
    journal = opened(path)
    assert journal.last == 2
    assert held(journal) == [b"a", b"d"]
    journal.close()


@pytest.mark.parametrize("left", [1, RECORD_BYTES - 1, RECORD_BYTES, ENTRY - 1])
def test_a_writer_that_dies_in_the_middle_again_and_again(tmp_path: Path, left: int) -> None:
    path = tmp_path / "j"
    wanted = []
    for letter in (b"a", b"b", b"c"):
        journal = opened(path)
        put(journal, letter)
        wanted.append(letter)
        put(journal, b"x", b"y")
        journal.close()
        whole = file_of(path).read_bytes()
        # Of the two that were put in at one go the first is whole, and that nobody was told of it is no harm.
        file_of(path).write_bytes(whole[: len(whole) - ENTRY + left])
        wanted.append(b"x")
    journal = opened(path)
    assert held(journal) == wanted
    journal.close()


def test_damage_that_no_death_of_a_process_leaves_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = opened(path)
    put(journal, b"a", b"b")
    journal.close()
    content = bytearray(file_of(path).read_bytes())
    content[HEADER_BYTES + RECORD_BYTES + 5] ^= 1
    file_of(path).write_bytes(content)
    with pytest.raises(Conflict, match="damaged"):
        opened(path)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_last_batch_is_made_again_at_the_target(before: int) -> None:
    """The server dies between the journal and the target; both sides must have the batch then."""
    machine = JournalMachine()
    machine.begin(7, 512)
    try:
        first = machine.mirror
        for start in range(before):
            machine.change([("write", (start, 2))], "none", "target", 1, 1)
        machine.change([("write", (9, 12))], "server", "target", 1, 1)
        assert machine.mirror is not first, "nothing has died"
        assert not machine.log, "it has not been compared"
    finally:
        machine.teardown()
