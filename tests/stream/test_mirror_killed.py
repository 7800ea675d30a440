"""Mirror with real programs: a server that is killed, a shadow overlay behind qemu-nbd that is killed too."""

from __future__ import annotations

import random
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.nbd.programs import listens, run
from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, Process, config_for, make_source, until
from tests.stream.test_stream_killed import RECORD, WRITERS, Writer, _moved
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import protocol as p
from whimbrel.stream.protect import ProtectConfig

SIZE = 24 * MIB


class Overlay:
    """A qcow2 overlay on the source, served writable by qemu-nbd, which may be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "shadow.qcow2"
        self.socket = directory / "shadow"
        self._program: subprocess.Popen[bytes] | None = None
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(directory / "source.raw"), "-F", "raw", str(self.file))

    @property
    def endpoint(self) -> NbdEndpoint:
        return NbdEndpoint(unix_path=str(self.socket), writable=True)

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        argv = ["qemu-nbd", "-f", "qcow2", "-k", str(self.socket), "--persistent", "--shared=8", "--cache=writeback"]
        self._program = subprocess.Popen([*argv, str(self.file)])
        until(lambda: listens(self.socket), "socket of the shadow")

    def kill(self) -> None:
        if self._program is not None:
            self._program.kill()
            self._program.wait(PATIENCE_S)

    def signal(self, number: int) -> None:
        """Stop it for a while, or let it go on."""
        if self._program is not None:
            self._program.send_signal(number)

    def content(self) -> bytes:
        """Base and overlay, as the source would boot from them; only while nothing has it open."""
        raw = self.file.with_suffix(".raw")
        run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(self.file), str(raw))
        return raw.read_bytes()


def kill_at_random(kills: int, rng: random.Random, server: Process, overlay: Overlay, writers: list[Writer]) -> None:
    """Kill server, shadow or both while all writers get on, and start them again; the first time both."""
    for number in range(kills):
        before = sum(writer.acknowledged for writer in writers)
        until(partial(_moved, writers, before), "writing after a restart")
        time.sleep(rng.uniform(0, 0.4))
        victims = rng.choice(["server", "shadow", "both"]) if number else "both"
        if victims != "server":
            overlay.kill()
        if victims != "shadow":
            server.kill()
            # The shadow need not be there for it.
            server.start()
        if victims != "server":
            overlay.start()


@pytest.mark.interop
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_everything_acknowledged_is_in_base_and_overlay(spot: Path, kills: int) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    overlay = Overlay(spot)
    protect = ProtectConfig(mode="mirror", shadow=overlay.endpoint)
    server = Process(spot, config_for(spot, SIZE, bandwidth_bytes_per_s=SIZE / max(kills, 8), protect=protect))
    writers = [Writer(number, spot / "nbd", seed=number + 100 * kills) for number in range(WRITERS)]
    rng = random.Random(kills)
    try:
        overlay.start()
        server.start()
        for writer in writers:
            writer.start()
        kill_at_random(kills, rng, server, overlay, writers)
        # The end of the target: no farewell, and the last request of each writer may have been made or not.
        for writer in writers:
            writer.ending.set()
        server.kill()
        overlay.kill()
        found = overlay.content()
        for writer in writers:
            writer.join(PATIENCE_S)
            assert not writer.is_alive()
            assert writer.failure is None, writer.failure
            for slot, data in writer.last.items():
                content[slot * RECORD : (slot + 1) * RECORD] = data
        pending = dict(writer.pending for writer in writers if writer.pending)
        for slot in range(SIZE // RECORD):
            place = slice(slot * RECORD, (slot + 1) * RECORD)
            assert found[place] in {bytes(content[place]), pending.get(slot)}, f"slot {slot}"
        overlay.start()
        server.start()
        server.drain()
        status = server.status()["protect"]
        assert (status["mode"], status["shadow_error"], status["unsettled_chunks"]) == ("mirror", None, 0)
        server.ask("set-bandwidth", bytes_per_s=None)
        until(lambda: server.status()["complete"], "end of the hydration")
        assert server.terminate() == 0
        overlay.kill()
        # What was not acknowledged may be there or not, but both sides say the same.
        both = (spot / "target.raw").read_bytes()
        assert overlay.content() == both
        for slot in range(SIZE // RECORD):
            place = slice(slot * RECORD, (slot + 1) * RECORD)
            assert both[place] in {bytes(content[place]), pending.get(slot)}, f"slot {slot}"
    finally:
        for writer in writers:
            writer.ending.set()
        server.kill()
        overlay.kill()


@pytest.mark.interop
def test_writes_wait_for_the_shadow_and_reads_do_not(spot: Path) -> None:
    content = make_source(spot / "source.raw", SIZE)
    overlay = Overlay(spot)
    protect = ProtectConfig(mode="mirror", shadow=overlay.endpoint)
    server = Process(spot, config_for(spot, SIZE, protect=protect))
    try:
        overlay.start()
        server.start()
        client = RawClient(spot / "nbd")
        client.ask(p.CMD_WRITE, 3 * CHUNK, data=b"a" * RECORD)
        client.ask(p.CMD_TRIM, 5 * CHUNK, CHUNK)
        client.ask(p.CMD_WRITE_ZEROES, 7 * CHUNK + 512, CHUNK)
        overlay.kill()
        late = client.post(p.CMD_WRITE, 9 * CHUNK, data=b"b" * RECORD)
        assert client.ask(p.CMD_READ, 3 * CHUNK, RECORD) == b"a" * RECORD
        client.ask(p.CMD_FLUSH)
        status = until(lambda: (s := server.status()["protect"])["shadow_error"] and s, "word of the shadow's loss")
        assert status["away_s"] is not None
        assert status["lag_bytes"] == RECORD
        assert not server.ask("drain", timeout_s=0.1)["drained"]
        overlay.socket.unlink()
        overlay.socket = spot / "moved"
        overlay.start()
        server.ask("shadow", endpoint=overlay.endpoint.model_dump(mode="json"))
        assert client.take() == (late, 0, b"")
        server.drain()
        assert server.status()["protect"]["shadow_error"] is None
        client.close()
        server.kill()
        overlay.kill()
        wanted = bytearray(content)
        wanted[3 * CHUNK : 3 * CHUNK + RECORD] = b"a" * RECORD
        wanted[5 * CHUNK : 6 * CHUNK] = bytes(CHUNK)
        wanted[7 * CHUNK + 512 : 8 * CHUNK + 512] = bytes(CHUNK)
        wanted[9 * CHUNK : 9 * CHUNK + RECORD] = b"b" * RECORD
        assert overlay.content() == wanted
    finally:
        server.kill()
        overlay.kill()
