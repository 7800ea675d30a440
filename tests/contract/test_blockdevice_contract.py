"""Every block device passes the block suite: in memory, on a file, and over NBD to a real qemu-nbd."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.suites.block_device import GRAIN, SIZE, BlockDeviceContract, Make
from tests.nbd.programs import qemu_nbd, run
from whimbrel.dataplane.devices import open_device
from whimbrel.dataplane.memorydevice import create_disk, find_disk, remove_disk
from whimbrel.model.endpoint import Endpoint, FileEndpoint, MemoryEndpoint, NbdEndpoint
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice


def maker(opened: ExitStack, endpoint: Callable[[bool], Endpoint], fill: Callable[[bytes], None]) -> Make:
    """The ``make`` of a suite: ``fill`` puts content on the disk, ``endpoint`` names it."""

    def make(content: bytes | None = None, *, writable: bool = True) -> BlockDevice:
        if content is not None:
            fill(content)
        device = open_device(endpoint(writable))
        opened.callback(device.close)
        return device

    return make


def write_sparse(path: Path, content: bytes) -> None:
    """A file with holes where ``content`` has whole grains of zeros."""
    with path.open("wb") as file:
        file.truncate(len(content))
        for offset in range(0, len(content), GRAIN):
            piece = content[offset : offset + GRAIN]
            if any(piece):
                file.seek(offset)
                file.write(piece)


class TestMemoryDevice(BlockDeviceContract):
    @pytest.fixture
    def make(self) -> Iterator[Make]:
        key = f"contract-{uuid.uuid4()}"

        def fill(content: bytes) -> None:
            remove_disk(key)
            disk = create_disk(key, len(content), tracked=False)
            disk.write(0, content)

        with ExitStack() as opened:
            yield maker(opened, lambda writable: MemoryEndpoint(key=key, writable=writable), fill)
        remove_disk(key)

    def test_tracking_marks_what_was_written(self) -> None:
        key = f"contract-{uuid.uuid4()}"
        create_disk(key, SIZE).write(0, b"1")
        find_disk(key).discard(4 * GRAIN, 1)
        device = open_device(MemoryEndpoint(key=key))
        assert list(device.changed()) == [Extent(0, GRAIN), Extent(4 * GRAIN, GRAIN, zero=True)]
        device.close()
        remove_disk(key)


class TestFileDevice(BlockDeviceContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Iterator[Make]:
        path = tmp_path / "disk.raw"
        with ExitStack() as opened:
            yield maker(
                opened,
                lambda writable: FileEndpoint(path=str(path), writable=writable),
                lambda content: write_sparse(path, content),
            )


class _NbdDevice(BlockDeviceContract):
    """One qemu-nbd for each test, restarted when it gets new content."""

    form = "raw"

    @pytest.fixture
    def make(self) -> Iterator[Make]:
        directory = Path(tempfile.mkdtemp(prefix="wblk"))
        raw, image = directory / "disk.raw", directory / f"disk.{self.form}"
        with ExitStack() as server, ExitStack() as opened:

            def fill(content: bytes) -> None:
                server.close()
                write_sparse(raw, content)
                if self.form != "raw":  # qemu-img would allocate the first sector of a raw file
                    run("qemu-img", "convert", "-f", "raw", "-O", self.form, str(raw), str(image))
                server.enter_context(qemu_nbd(directory, image, form=self.form))

            yield maker(
                opened, lambda writable: NbdEndpoint(unix_path=str(directory / "q.sock"), writable=writable), fill
            )
        shutil.rmtree(directory)


@pytest.mark.interop
class TestNbdDevice(_NbdDevice):
    pass


@pytest.mark.interop
class TestNbdDeviceQcow2(_NbdDevice):
    form = "qcow2"
