"""The two looks at an image's blocks, against a model of librbd's answers; and what has no Ceph to ask."""

from __future__ import annotations

import errno
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.ceph import binding, extents
from drivers.ceph.errors import BY_ERRNO, from_errno
from drivers.ceph.session import plain
from whimbrel.errors import Conflict, PermissionDenied, QuotaExceeded, Unavailable, Unsupported
from whimbrel.model.extent import Extent

OBJECT = 64
SIZE = 1000
Blocks = dict[int, bool]
"""Byte -> whether it exists; bytes that did not change are missing."""


class FakeImage:
    """Answers as librbd does: whole objects, or exactly; several pieces a call, each inside of one object."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.fine_bytes = 0

    def __call__(
        self, offset: int, length: int, since: str | None, *, whole_object: bool
    ) -> list[tuple[int, int, bool]]:
        end = min(offset + length, SIZE)
        if whole_object:
            touched = sorted({byte // OBJECT for byte in self.blocks if offset <= byte < end})
            return [(number * OBJECT, min(OBJECT, SIZE - number * OBJECT), True) for number in touched]
        self.fine_bytes += end - offset
        return [(byte, 1, exists) for byte, exists in sorted(self.blocks.items()) if offset <= byte < end]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "WINDOW_BYTES", 130)  # cuts objects in two
    monkeypatch.setattr(extents, "FINE_BYTES", 50)


def bytes_of(found: list[Extent]) -> Blocks:
    return {byte: not extent.zero for extent in found for byte in range(extent.start, extent.end)}


@given(st.dictionaries(st.integers(0, SIZE - 1), st.booleans()), st.integers(0, SIZE), st.integers(0, SIZE))
def test_differences_are_exactly_those_of_the_range(blocks: Blocks, one: int, other: int) -> None:
    start, end = min(one, other), max(one, other)
    image = FakeImage(blocks)
    found = list(extents.differences(image, "s0", start, end - start))
    assert bytes_of(found) == {byte: exists for byte, exists in blocks.items() if start <= byte < end}
    assert sum(extent.length for extent in found) == len(bytes_of(found))
    assert found == sorted(found)
    objects = {byte // OBJECT for byte in blocks}
    assert image.fine_bytes <= len(objects) * OBJECT, "objects that did not change are not asked twice"


@given(st.sets(st.integers(0, SIZE - 1)), st.integers(0, SIZE), st.integers(0, SIZE))
def test_allocation_covers_the_range(data: set[int], one: int, other: int) -> None:
    start, end = min(one, other), max(one, other)
    image = FakeImage(dict.fromkeys(data, True))
    known = extents.differences(image, None, start, end - start)
    found = list(extents.allocation(known, start, end))
    assert bytes_of(found) == {byte: byte in data for byte in range(start, end)}
    assert [start, *(extent.end for extent in found)] == [*(extent.start for extent in found), end]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, Conflict),
        (-errno.ESHUTDOWN, Unavailable),
        (errno.EACCES, PermissionDenied),
        (errno.EDQUOT, QuotaExceeded),
        (errno.EIO, Unavailable),
        (0, Unavailable),
    ],
)
def test_errno_decides(number: int, kind: type[Exception]) -> None:
    error = from_errno(number, "writing pool/image")
    assert type(error) is kind
    assert error.message.startswith("writing pool/image failed: ")


def test_every_errno_has_words() -> None:
    assert all(why for _, why, _ in BY_ERRNO.values())


@pytest.mark.parametrize("address", ["v2:198.18.0.1:0/77", "any:198.18.0.1:0/77", "198.18.0.1:0/77"])
def test_addresses_are_compared_without_protocol(address: str) -> None:
    assert plain(address) == "198.18.0.1:0/77"


def test_a_missing_binding_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rados", "rbd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(binding, "SYSTEM_DIRECTORIES", ("/nonexistent",))
    with pytest.raises(Unsupported) as raised:
        binding.load()
    assert "python3-rbd" in raised.value.action
