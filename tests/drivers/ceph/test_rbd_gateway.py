"""librbd's live import from our gateway, while a client writes, the source goes away, and the server is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.openstack import OpenStackLab
from tests.drivers.ceph.imports import GuestIo, guest_io, imports_of, patched
from tests.drivers.ceph.scratch import ScratchImage, scratch_image
from tests.stream.http.servers import http_config
from tests.stream.streams import until
from whimbrel.errors import WhimbrelError
from whimbrel.stream import ask, launch, stop
from whimbrel.stream.http.token import url

pytestmark = pytest.mark.openstack

MIB = 1 << 20
SIZE = 64 * MIB + 12_800
CONTENT = random.Random("gateway").randbytes(SIZE)


class Gateway:
    """A launched stream of a file, where the lab's Ceph clients reach it."""

    def __init__(self, spot: Path, address: str) -> None:
        self.spot, self.file = spot, spot / "disk.json"
        (spot / "source.raw").write_bytes(CONTENT)
        config = http_config(spot, SIZE, bandwidth_bytes_per_s=8.0 * MIB)
        assert config.http is not None
        self.config = config.model_copy(update={"http": config.http.model_copy(update={"address": address})})
        self.file.write_text(self.config.model_dump_json(), encoding="utf-8")
        launch(self.file)
        port = ask(spot / "control", "status")["http"]["port"]
        self.url = url(address, port, spot / "disk.token")

    def pid(self) -> int:
        try:
            return int(ask(self.spot / "control", "status")["pid"])
        except WhimbrelError:
            return 0

    def kill(self) -> None:
        """SIGKILL; returns when the next server answers."""
        before = until(self.pid, "server")
        os.kill(before, signal.SIGKILL)
        until(lambda: self.pid() not in {0, before}, "next server")

    def stop(self) -> None:
        stop(self.spot / "control", config_path=self.file)


class Writer:
    """Random reads and flushed writes that never overlap two sectors; keeps what was acknowledged."""

    def __init__(self, guest: GuestIo) -> None:
        self._guest = guest
        self.written: dict[int, bytes] = {}
        self.failed: list[int] = []
        self.wrong: list[int] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rng = random.Random(7)
        while not self._ending.is_set():
            at = rng.randrange(SIZE // 4096 - 1) * 4096
            if rng.random() < 0.5:
                data = rng.randbytes(4096)
                if self._guest.write(at, data):
                    self.written[at] = data
                else:
                    self.failed.append(at)
            else:
                try:
                    found = self._guest.read(at, 4096)
                except Exception:
                    self.failed.append(at)
                    continue
                if found != self.written.get(at, CONTENT[at : at + 4096]):
                    self.wrong.append(at)
            time.sleep(0.01)

    def end(self) -> None:
        self._ending.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


@pytest.fixture
def spot(tmp_path: Path) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="wgate") as directory:
        yield Path(directory)


@pytest.fixture
def gateway(spot: Path, ceph_lab: OpenStackLab) -> Iterator[Gateway]:
    made = Gateway(spot, ceph_lab.host_address)
    yield made
    made.stop()


@pytest.fixture
def image(ceph_lab: OpenStackLab) -> Iterator[ScratchImage]:
    with scratch_image(ceph_lab.cloud("a")) as made:
        yield made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_an_import_under_a_writer_loses_nothing_to_kills_and_an_absent_source(
    ceph_lab: OpenStackLab, gateway: Gateway, image: ScratchImage, kills: int
) -> None:
    imports, rng = imports_of(ceph_lab.cloud("a")), random.Random()
    away_s = 60.0 if kills > 3 else 10.0
    imports.prepare(image.pool, image.name, gateway.url, size_bytes=SIZE, object_bytes=MIB)
    image.snap("s0")
    done = threading.Event()
    problems: list[BaseException] = []

    def execute() -> None:
        try:
            imports.execute(
                image.pool, image.name, requests=2, should_stop=lambda: False, on_progress=lambda _done, _total: None
            )
        except BaseException as error:
            problems.append(error)
        done.set()

    with guest_io(imports, image) as guest:
        writer = Writer(guest)
        threading.Thread(target=execute, daemon=True).start()
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 1.0))
            gateway.kill()
        (gateway.spot / "source.raw").rename(gateway.spot / "away.raw")
        ask(gateway.spot / "control", "source", endpoint=gateway.config.source.model_dump(mode="json"))
        time.sleep(away_s)
        (gateway.spot / "away.raw").rename(gateway.spot / "source.raw")
        with contextlib.suppress(WhimbrelError):
            ask(gateway.spot / "control", "set-bandwidth", bytes_per_s=None)
        assert done.wait(180)
        writer.end()
    assert not problems
    assert (writer.failed, writer.wrong) == ([], [])
    assert len(writer.written) > 20
    assert image.read("s0")[:SIZE] == CONTENT
    imports.commit(image.pool, image.name)
    assert image.read()[:SIZE] == patched(CONTENT, writer.written)
