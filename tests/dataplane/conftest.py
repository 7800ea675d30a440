"""The manifest of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from whimbrel.dataplane import Manifest


@pytest.fixture
def manifest_of(tmp_path: Path) -> Iterator[Callable[[int], Manifest]]:
    """Opens the test's one manifest for a disk of the given size; closed at the end."""
    opened: list[Manifest] = []

    def open_it(size_bytes: int) -> Manifest:
        opened.append(Manifest.open(tmp_path / "disk.manifest", size_bytes))
        return opened[-1]

    yield open_it
    for manifest in opened:
        manifest.close()
