"""kill -9 of the server at random moments under clients that write: whatever was acknowledged is there afterwards."""

from __future__ import annotations

import random
import struct
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, Process, config_for, make_source, until
from whimbrel.nbd import protocol as p

SIZE = 24 * MIB
RECORD = 4096
WRITERS = 3


def record(writer: int, slot: int, number: int) -> bytes:
    """A record that tells whose, where and which it is, all over."""
    return struct.pack("<IIQ", writer, slot, number) * (RECORD // 16)


class Writer(threading.Thread):
    """Writes numbered records to slots of its own, reconnects when the server dies, and checks what it finds.

    A request without an answer is repeated after the reconnect, as QEMU does.
    """

    def __init__(self, number: int, path: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.path = path
        self.rng = random.Random(seed)
        self.slots = [slot for slot in range(SIZE // RECORD) if slot % WRITERS == number]
        self.last: dict[int, bytes] = {}
        self.pending: tuple[int, bytes] | None = None
        """Asked for and not acknowledged; repeated until it is."""
        self.acknowledged = 0
        self.reconnects = -1
        self.ending = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                try:
                    client = RawClient(self.path)
                except OSError:
                    time.sleep(0.01)
                    continue
                self.reconnects += 1
                try:
                    self.check(client, skip=self.pending[0] if self.pending else None)
                    while not self.ending.is_set() or self.pending:
                        self.pending = self.pending or self.next_record()
                        slot, data = self.pending
                        self.put(client, slot, data)
                        self.last[slot] = data
                        self.acknowledged += 1
                        self.pending = None
                except OSError:
                    continue
                finally:
                    client.close()
        except BaseException as failure:
            self.failure = failure

    def next_record(self) -> tuple[int, bytes]:
        # A few slots are written often; most are in chunks that nobody has touched.
        slot = self.rng.choice(self.slots[:20] if self.rng.random() < 0.3 else self.slots)
        return slot, record(self.number, slot, self.acknowledged)

    def put(self, client: RawClient, slot: int, data: bytes) -> None:
        fua = p.CMD_FLAG_FUA if self.rng.random() < 0.1 else 0
        client.ask(p.CMD_WRITE, slot * RECORD, data=data, flags=fua)
        if self.rng.random() < 0.05:
            client.ask(p.CMD_FLUSH)

    def check(self, client: RawClient, skip: int | None) -> None:
        for slot in self.rng.sample(sorted(self.last), min(len(self.last), 40)):
            if slot != skip:
                assert client.ask(p.CMD_READ, slot * RECORD, RECORD) == self.last[slot], f"slot {slot}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_no_acknowledged_write_is_lost(spot: Path, kills: int) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    # Slow enough that most kills hit in the middle of the hydration.
    server = Process(spot, config_for(spot, SIZE, bandwidth_bytes_per_s=SIZE / max(kills, 8)))
    writers = [Writer(number, spot / "nbd", seed=number + 100 * kills) for number in range(WRITERS)]
    rng = random.Random(kills)
    try:
        server.start()
        for writer in writers:
            writer.start()
        locals_seen = []
        for _ in range(kills):
            before = sum(writer.acknowledged for writer in writers)
            until(partial(_moved, writers, before), "writing after a restart")
            time.sleep(rng.uniform(0, 0.4))
            status = server.status()
            locals_seen.append(status["chunks"] - status["missing_chunks"])
            server.kill()
            server.start()
            assert server.status()["chunks"] - server.status()["missing_chunks"] >= locals_seen[-1]
        for writer in writers:
            # One answer may be of the life before. Who has two has repeated what nobody had answered.
            until(partial(_moved, [writer], writer.acknowledged, 1), "writing after the last restart")
            writer.ending.set()
        for writer in writers:
            writer.join(PATIENCE_S)
            assert not writer.is_alive()
            assert writer.failure is None, writer.failure
        assert max(writer.reconnects for writer in writers) >= kills // 2
        for writer in writers:
            for slot, data in writer.last.items():
                content[slot * RECORD : (slot + 1) * RECORD] = data
        server.ask("set-bandwidth", bytes_per_s=None)
        until(lambda: server.status()["complete"], "end of the hydration")
        client = RawClient(spot / "nbd")
        for start in range(0, SIZE, MIB):
            assert client.ask(p.CMD_READ, start, MIB) == content[start : start + MIB]
        client.close()
        written = {slot * RECORD // CHUNK for writer in writers for slot in writer.last}
        assert server.status()["written_chunks"] == len(written)
        assert server.status()["host_crashes"] == 0
        assert server.terminate() == 0
        assert (spot / "target.raw").read_bytes() == content
    finally:
        for writer in writers:
            writer.ending.set()
        server.kill()


def _moved(writers: list[Writer], before: int, by: int = 20) -> bool:
    for writer in writers:
        if writer.failure is not None:
            raise writer.failure
    return sum(writer.acknowledged for writer in writers) > before + by
