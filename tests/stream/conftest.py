"""Fixtures of the streaming server's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def spot() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name in 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="wstr"))
    yield path
    shutil.rmtree(path)
