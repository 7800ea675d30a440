"""Random requests through several lanes of a real qemu-nbd, against a bytearray."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nbd.programs import qemu_nbd
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import NbdDevice, NbdLane, open_nbd

pytestmark = pytest.mark.interop
SIZE = 8 << 20
LANES = 3

STEP = st.tuples(
    st.integers(0, LANES - 1),
    st.sampled_from(["read", "read", "write", "write", "zero", "punch", "flush"]),
    st.integers(0, SIZE - 1),
    st.integers(1, 3 << 20),
)


@pytest.fixture(scope="module")
def device() -> Iterator[NbdDevice]:
    directory = Path(tempfile.mkdtemp(prefix="wnbd"))
    image = directory / "disk.raw"
    with image.open("wb") as file:
        file.truncate(SIZE)
    with qemu_nbd(directory, image, "--discard=unmap") as sock:
        opened = open_nbd(NbdEndpoint(unix_path=str(sock), writable=True), timeout_s=60)
        yield opened
        opened.close()
    shutil.rmtree(directory)


class Model:
    """What the disk must hold; a step that touches bytes in flight waits for all lanes first."""

    def __init__(self, lanes: list[NbdLane]) -> None:
        self.lanes = lanes
        self.content = bytearray(SIZE)
        self.waiting: dict[tuple[int, int], tuple[str, int, int, bytearray, bytes]] = {}

    def step(self, number: int, operation: str, offset: int, length: int, seed: int) -> None:
        length = min(length, SIZE - offset)
        if operation == "flush":
            self.settle()
            self.lanes[number].flush()
            return
        if any(o < offset + length and offset < o + n for _, o, n, _, _ in self.waiting.values()):
            self.settle()
        lane, end = self.lanes[number], offset + length
        buffer = bytearray(random.Random(seed).randbytes(length))
        if operation == "read":
            cookie = lane.submit_read(offset, memoryview(buffer))
        elif operation == "write":
            self.content[offset:end] = buffer
            cookie = lane.submit_write(offset, memoryview(buffer))
        else:
            self.content[offset:end] = bytes(length)
            cookie = lane.submit_zero(offset, length, may_punch=operation == "punch")
        name = "zero" if operation == "punch" else operation
        self.waiting[number, cookie] = (name, offset, length, buffer, bytes(self.content[offset:end]))

    def settle(self) -> None:
        for number, lane in enumerate(self.lanes):
            while lane.in_flight:
                done = lane.reap()
                operation, offset, length, buffer, expected = self.waiting.pop((number, done.cookie))
                assert (done.operation, done.offset, done.length) == (operation, offset, length)
                if operation == "read":
                    assert buffer == expected
        assert not self.waiting


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, max_size=40))
def test_any_requests_through_several_lanes(device: NbdDevice, steps: list[tuple[int, str, int, int]]) -> None:
    model = Model([device.lane() for _ in range(LANES)])
    try:
        model.lanes[0].submit_zero(0, SIZE)
        model.lanes[0].reap()
        for seed, (number, operation, offset, length) in enumerate(steps):
            model.step(number, operation, offset, length, seed)
        model.settle()
        whole = bytearray(SIZE)
        model.lanes[0].submit_read(0, memoryview(whole))
        model.lanes[0].reap()
        assert whole == model.content
        end = 0
        for extent in device.extents():
            assert extent.start == end
            end = extent.end
            assert not (extent.zero and any(model.content[extent.start : extent.end]))
        assert end == SIZE
    finally:
        for lane in model.lanes:
            lane.close()
