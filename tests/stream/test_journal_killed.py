"""Journal with real programs: a server that is killed, a shadow overlay behind qemu-nbd that is killed too."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.nbd.programs import listens
from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, REPOSITORY, Process, config_for, make_source, until
from tests.stream.test_mirror_killed import SIZE, Overlay, kill_at_random
from tests.stream.test_stream_killed import RECORD, WRITERS, Writer, record
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import protocol as p
from whimbrel.stream.protect import ProtectConfig

SLOTS = 40


@pytest.mark.interop
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_after_kills_a_drain_brings_everything_acknowledged(spot: Path, kills: int) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    overlay = Overlay(spot)
    protect = ProtectConfig(mode="journal", shadow=overlay.endpoint)
    server = Process(spot, config_for(spot, SIZE, bandwidth_bytes_per_s=SIZE / max(kills, 8), protect=protect))
    writers = [Writer(number, spot / "nbd", seed=number + 100 * kills) for number in range(WRITERS)]
    rng = random.Random(kills)
    try:
        overlay.start()
        server.start()
        for writer in writers:
            writer.start()
        kill_at_random(kills, rng, server, overlay, writers)
        for writer in writers:
            writer.ending.set()
        server.kill()
        overlay.kill()
        for writer in writers:
            writer.join(PATIENCE_S)
            assert not writer.is_alive()
            assert writer.failure is None, writer.failure
            for slot, data in writer.last.items():
                content[slot * RECORD : (slot + 1) * RECORD] = data
        pending = dict(writer.pending for writer in writers if writer.pending)
        server.start()
        assert not server.ask("drain", timeout_s=0.1)["drained"] or not server.status()["protect"]["lacking_changes"]
        overlay.start()
        server.drain()
        status = server.status()["protect"]
        assert (status["mode"], status["shadow_error"], status["unsettled_chunks"]) == ("journal", None, 0)
        assert (status["lag_bytes"], status["lacking_changes"], status["journal_error"]) == (0, 0, None)
        # No farewell: drained means that it is in the overlay for good.
        overlay.kill()
        found = overlay.content()
        for slot in range(SIZE // RECORD):
            place = slice(slot * RECORD, (slot + 1) * RECORD)
            assert found[place] in {bytes(content[place]), pending.get(slot)}, f"slot {slot}"
        overlay.start()
        server.ask("set-bandwidth", bytes_per_s=None)
        until(lambda: server.status()["complete"], "end of the hydration")
        assert server.terminate() == 0
        overlay.kill()
        assert (spot / "target.raw").read_bytes() == found
    finally:
        for writer in writers:
            writer.ending.set()
        server.kill()
        overlay.kill()


@pytest.mark.interop
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_without_a_drain_the_overlay_is_a_beginning_of_what_was_written(spot: Path, rounds: int) -> None:
    content = bytearray(make_source(spot / "source.raw", MIB))
    states = [bytes(content)]
    overlay = Overlay(spot)
    protect = ProtectConfig(mode="journal", shadow=overlay.endpoint)
    server = Process(spot, config_for(spot, MIB, protect=protect))
    reached = number = 0
    rng = random.Random(rounds)
    try:
        server.start()
        for _ in range(rounds):
            overlay.start()
            client = RawClient(spot / "nbd")
            for _ in range(rng.randint(30, 60)):
                number += 1
                slot = rng.randrange(SLOTS)
                data = record(0, slot, number)
                content[slot * RECORD : (slot + 1) * RECORD] = data
                states.append(bytes(content))
                client.ask(p.CMD_WRITE, slot * RECORD, data=data)
                client.ask(p.CMD_FLUSH)
            client.close()
            victims = rng.choice(["shadow", "both"])
            overlay.kill()
            if victims == "both":
                server.kill()
                server.start()
            found = overlay.content()
            assert found in states, "the overlay is no state that the disk ever had"
            now = max(at for at, state in enumerate(states) if state == found)
            assert now >= reached, "the overlay went back"
            reached = now
        overlay.start()
        server.drain()
        overlay.kill()
        assert overlay.content() == content
    finally:
        server.kill()
        overlay.kill()


@pytest.mark.interop
def test_writes_go_on_while_the_shadow_is_away_until_the_bound(spot: Path) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    overlay = Overlay(spot)
    bound = 64 * RECORD
    protect = ProtectConfig(mode="journal", shadow=overlay.endpoint, max_lag_bytes=bound, max_lag_s=3600)
    server = Process(spot, config_for(spot, SIZE, protect=protect))
    try:
        server.start()
        client = RawClient(spot / "nbd")
        for slot in range(100):
            data = record(1, slot, 1)
            client.post(p.CMD_WRITE, slot * CHUNK // 2, data=data)
            content[slot * CHUNK // 2 : slot * CHUNK // 2 + RECORD] = data
        taken = {client.take()[:2] for _ in range(64)}
        assert taken == {(cookie, 0) for cookie in range(1, 65)}
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.take()
        client.sock.settimeout(PATIENCE_S)
        status = until(lambda: (s := server.status()["protect"])["shadow_error"] and s, "word of the shadow's loss")
        assert status["lag_bytes"] == bound
        assert status["lag_s"] > 0
        reader = RawClient(spot / "nbd")
        assert reader.ask(p.CMD_READ, 0, RECORD) == record(1, 0, 1)
        reader.ask(p.CMD_FLUSH)
        assert not server.ask("drain", timeout_s=0.1)["drained"]
        # Killed while writes wait: all that was acknowledged is in the journal, and the rest may be.
        server.kill()
        server.start()
        assert server.status()["protect"]["lag_bytes"] >= bound
        overlay.start()
        server.drain()
        overlay.kill()
        found = overlay.content()
        for slot in range(64):
            place = slice(slot * CHUNK // 2, slot * CHUNK // 2 + RECORD)
            assert found[place] == content[place]
    finally:
        server.kill()
        overlay.kill()


@pytest.mark.interop
def test_a_shadow_that_hangs_slows_writes_and_lets_them_go_on(spot: Path) -> None:
    make_source(spot / "source.raw", SIZE)
    overlay = Overlay(spot)
    # A bound in time would make the one in bytes smaller while the shadow hangs.
    protect = ProtectConfig(mode="journal", shadow=overlay.endpoint, max_lag_bytes=16 * RECORD, max_lag_s=3600)
    server = Process(spot, config_for(spot, SIZE, protect=protect))
    try:
        overlay.start()
        server.start()
        client = RawClient(spot / "nbd")
        client.ask(p.CMD_WRITE, 0, data=b"a" * RECORD)
        server.drain()
        overlay.signal(signal.SIGSTOP)
        posted = [client.post(p.CMD_WRITE, CHUNK * number, data=b"b" * RECORD) for number in range(1, 33)]
        answered = [client.take()[0] for _ in range(16)]
        assert server.status()["protect"]["lag_bytes"] == 16 * RECORD
        # The next one waits from the moment that it is dealt with, which is soon.
        time.sleep(1.0)
        overlay.signal(signal.SIGCONT)
        answered += [client.take()[0] for _ in range(16)]
        assert sorted(answered) == posted
        server.drain()
        assert server.status()["protect"]["slowed_s"] > 0.2
    finally:
        overlay.signal(signal.SIGCONT)
        server.kill()
        overlay.kill()


@pytest.mark.interop
@pytest.mark.parametrize("rate", [300e3, pytest.param(2e6, marks=pytest.mark.slow)])
def test_a_slow_shadow_is_never_further_behind_than_said(quick_spot: Path, rate: float) -> None:
    """It works, at a rate that the guest exceeds by far: writes wait, and none is older at any moment."""
    spot = quick_spot
    content, longest_s = bytearray(make_source(spot / "source.raw", SIZE)), 3.0
    overlay = Overlay(spot)
    overlay.start()
    slow = spot / "slow"
    argv = [sys.executable, "-m", "tests.bench.paced_link", str(slow), str(overlay.socket), "--up", "--rate", str(rate)]
    link = subprocess.Popen(argv, cwd=REPOSITORY)
    shadow = NbdEndpoint(unix_path=str(slow), writable=True)
    protect = ProtectConfig(mode="journal", shadow=shadow, max_lag_s=longest_s)
    server = Process(spot, config_for(spot, SIZE, protect=protect))
    ending, acknowledged = threading.Event(), [0]

    def write() -> None:
        client = RawClient(spot / "nbd")
        for number in range(SIZE // RECORD):
            data = record(2, number, number)
            client.post(p.CMD_WRITE, number * RECORD, data=data)
            content[number * RECORD : (number + 1) * RECORD] = data
            if number >= 16:
                assert client.take()[1] == 0
                acknowledged[0] += RECORD
            if ending.is_set():
                return

    writer = threading.Thread(target=write, daemon=True)
    try:
        until(lambda: listens(slow), "link")
        server.start()
        writer.start()
        began = looked = time.monotonic()
        seen, stalls = [], []
        while looked - began < 6:
            seen.append(server.status()["protect"]["lag_s"])
            time.sleep(0.05)
            looked, before = time.monotonic(), looked
            stalls.append(looked - before)
        ending.set()
        writer.join(PATIENCE_S)
        # For so long the machine did something else; the shadow stood still then, and the writer.
        lost_s = sum(stall for stall in stalls if stall > 0.15)
        assert max(seen) < longest_s + lost_s
        assert server.status()["protect"]["slowed_s"] > 3 - lost_s
        assert acknowledged[0] > 0.3 * rate * (6 - lost_s)
        server.drain()
        overlay.kill()
        assert overlay.content() == content
    finally:
        ending.set()
        server.kill()
        link.kill()
        link.wait()
        overlay.kill()
