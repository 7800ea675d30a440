"""The in-memory clouds pass the contract suite of handovers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from drivers.memory import MemoryCloud
from tests.contract.memory_sharing import MemorySharing
from tests.contract.sharing_harness import SharingHarness
from tests.contract.suites.handover import HandoverContract


class TestMemoryHandover(HandoverContract):
    @pytest.fixture
    def sharing(self) -> Iterator[SharingHarness]:
        name = f"share-{uuid.uuid4().hex[:8]}"
        yield MemorySharing(name)
        for side in "ab":
            MemoryCloud.reset(f"{name}-{side}")


class TestMemoryHandoverRaw(TestMemoryHandover):
    disk_format = "raw"
