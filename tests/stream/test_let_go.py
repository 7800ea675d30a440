"""After confirm the guest needs no shadow any more: writes that wait for one go on, and none is lost by that."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, Process, config_for, make_source
from tests.stream.test_journal_model import JournalMachine
from tests.stream.test_mirror_killed import Overlay
from tests.stream.test_mirror_model import MirrorMachine
from tests.stream.test_stream_killed import RECORD, record
from whimbrel.errors import Unavailable
from whimbrel.nbd import protocol as p
from whimbrel.stream.protect import ProtectConfig
from whimbrel.stream.protect.config import ProtectMode

WRITES = 8


@pytest.mark.interop
@pytest.mark.parametrize("mode", ["mirror", "journal"])
@pytest.mark.parametrize("shadow", ["died", "hangs"])
def test_writes_that_wait_for_a_shadow_go_on(spot: Path, mode: ProtectMode, shadow: str) -> None:
    make_source(spot / "source.raw", 2 * MIB)
    overlay = Overlay(spot)
    # A bound in time would make the one in bytes smaller while the shadow hangs.
    protect = ProtectConfig(mode=mode, shadow=overlay.endpoint, max_lag_bytes=2 * RECORD, max_lag_s=3600)
    config = config_for(spot, 2 * MIB, protect=protect)
    server = Process(spot, config)
    wanted = {number: record(1, number, 1) for number in range(WRITES)}
    try:
        overlay.start()
        server.start()
        client = RawClient(spot / "nbd")
        client.ask(p.CMD_WRITE, (WRITES + 1) * CHUNK, data=record(1, 99, 1))
        server.drain()
        if shadow == "died":
            overlay.kill()
        else:
            overlay.signal(signal.SIGSTOP)
        posted = {client.post(p.CMD_WRITE, number * CHUNK, data=data) for number, data in wanted.items()}
        told = {client.take()[0] for _ in range(2 if mode == "journal" else 0)}
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.take()
        client.sock.settimeout(PATIENCE_S)
        assert not server.status()["protect"]["needs_shadow"]
        assert server.ask("let-go")["let_go"]
        assert told | {client.take()[0] for _ in range(WRITES - len(told))} == posted
        client.ask(p.CMD_WRITE, WRITES * CHUNK, data=record(1, WRITES, 1))
        server.drain()
        assert server.status()["protect"]["shadow_error"] is None
        # As the activity writes it; who starts the server from now on knows of no shadow.
        (spot / "config.json").write_text(config.model_copy(update={"protect": ProtectConfig()}).model_dump_json())
        server.kill()
        server.start()
        client = RawClient(spot / "nbd")
        for number, data in (*wanted.items(), (WRITES, record(1, WRITES, 1))):
            assert client.ask(p.CMD_READ, number * CHUNK, RECORD) == data
        client.ask(p.CMD_WRITE, 0, data=record(1, 0, 2))
        assert server.ask("let-go")["let_go"]
    finally:
        overlay.signal(signal.SIGCONT)
        server.kill()
        overlay.kill()


@pytest.mark.parametrize("kind", [MirrorMachine, JournalMachine])
def test_a_shadow_that_makes_a_crash_of_the_host_good_is_not_let_go(
    kind: type[MirrorMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has acknowledged writes that the target has lost."""

    def away(_count: int) -> None:
        raise Unavailable("the shadow is away")

    machine = kind()
    machine.begin(3, 512)
    try:
        machine.change([("write", (0, 9))], "none", *((1, 1) if kind is MirrorMachine else ("target", 1, 1)))
        assert machine.mirror.drain(PATIENCE_S)
        machine.end()
        machine.shadow.before = away
        if isinstance(machine, JournalMachine):
            machine.lose_journal(random.Random(3))
            # It opens with its own fault point, and the thread that settles begins at once.
            monkeypatch.setattr(machine, "at_shadow", lambda: away(0))
        machine.crash_files(3)
        machine.open()
        assert not machine.mirror.let_go()
        assert machine.mirror.report()["needs_shadow"]
        assert not machine.mirror.drain(0.1)
        machine.shadow.before = lambda _count: None
        assert machine.mirror.drain(PATIENCE_S)
        assert machine.mirror.let_go()
    finally:
        machine.teardown()
