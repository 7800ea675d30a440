"""Telling a guest from a copy by what it asks for."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from whimbrel.stream.http.reader import BULK_AFTER, Reader, is_object

MIB = 1 << 20
OBJECT = 4 * MIB
SIZE = 100 * OBJECT + 12_800


def objects(numbers: list[int]) -> list[tuple[int, int]]:
    return [(number * OBJECT, min((number + 1) * OBJECT, SIZE)) for number in numbers]


def test_an_execute_is_bulk_after_some_objects_even_where_its_requests_overtake_each_other() -> None:
    # As librbd 16.2.15 sent them for 17 objects, ten in flight.
    order = [0, 3, 4, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 100, 15]
    reader = Reader(SIZE)
    verdicts = [reader.note(*each) for each in objects(order)]
    assert verdicts[:BULK_AFTER] == [False] * (BULK_AFTER - 1) + [True]
    assert all(verdicts[BULK_AFTER - 1 : -1])


def test_gaps_are_what_is_there_already() -> None:
    reader = Reader(SIZE)
    assert [reader.note(*each) for each in objects([3, 10, 11, 60, 99])][-1]


@given(st.integers(0, 20), st.integers(0, SIZE // 4096 - 1), st.sampled_from([512, 4096, 65536]))
def test_one_small_read_makes_a_guest_for_good(before: int, block: int, length: int) -> None:
    reader = Reader(SIZE)
    for each in objects(list(range(before))):
        reader.note(*each)
    assert not reader.note(block * 4096, min(block * 4096 + length, SIZE - 1))
    assert not any(reader.note(*each) for each in objects(list(range(before, 90))))


@given(st.randoms(use_true_random=False))
def test_random_copy_ups_are_a_guests(rng: random.Random) -> None:
    numbers = list(range(0, 100, 3))
    rng.shuffle(numbers)
    numbers[:3] = [99, 0, 98]  # down by more than copies ever are in disorder
    reader = Reader(SIZE)
    assert not any(reader.note(*each) for each in objects(numbers))


def test_a_named_one_is_bulk_whatever_it_does() -> None:
    reader = Reader(SIZE, known_bulk=True)
    assert reader.bulk
    assert reader.note(512, 1024)


def test_objects() -> None:
    assert is_object(OBJECT, 2 * OBJECT)
    assert is_object(3 * 512 * 1024, 4 * 512 * 1024)
    assert not is_object(0, 256 << 10)
    assert not is_object(0, 64 * MIB)
    assert not is_object(MIB, 5 * MIB)
    assert not is_object(0, 3 * MIB)
