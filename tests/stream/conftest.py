"""Fixtures of the streaming server's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def spot() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name in 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="wstr"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def quick_spot() -> Iterator[Path]:
    """The same in memory where there is such a place: a sync there waits for no other's writes."""
    path = Path(tempfile.mkdtemp(prefix="wstr", dir=MEMORY if MEMORY.is_dir() else None))
    yield path
    shutil.rmtree(path)
