"""The server as a process: control, restart, a source that goes away, TLS on both sides."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.ports import lend_port
from tests.nbd.programs import nbdkit, run, running
from tests.nbd.test_nbd_tls import certificate
from tests.stream.rawclient import RawClient, Refused
from tests.stream.streams import (
    CHUNK,
    MIB,
    PATIENCE_S,
    REPOSITORY,
    Process,
    client_of,
    config_for,
    make_source,
    process,
    until,
)
from whimbrel.errors import Conflict, InvalidPlan, Unavailable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths
from whimbrel.nbd import open_nbd
from whimbrel.nbd import protocol as p
from whimbrel.stream import ListenAt, ServerTls, ask
from whimbrel.stream.server import open_target

SIZE = 8 * MIB


def test_control_and_an_orderly_restart(spot: Path) -> None:
    content = make_source(spot / "source.raw", SIZE, share=1.0)
    config = config_for(spot, SIZE, background=False, window_bytes=128 << 10)
    with process(spot, config) as server:
        status = server.status()
        assert (status["chunks"], status["missing_chunks"], status["complete"]) == (128, 128, False)
        assert status["background"]["paused"]
        assert status["background"]["window_bytes"] == 128 << 10
        server.ask("set-window", bytes=None)
        assert not server.status()["background"]["window_fixed"]
        server.ask("set-window", bytes=65536)
        assert server.status()["background"]["window_bytes"] == 65536
        server.ask("set-bandwidth", bytes_per_s=4e6)
        assert server.status()["background"]["bandwidth_bytes_per_s"] == 4e6
        for verb, arguments in (
            ("set-window", {}),
            ("set-window", {"bytes": 0}),
            ("set-window", {"bytes": "many"}),
            ("set-bandwidth", {"bytes_per_s": -1}),
            ("dance", {}),
        ):
            with pytest.raises(InvalidPlan, match=verb):
                server.ask(verb, **arguments)
        client = RawClient(spot / "nbd")
        assert client.ask(p.CMD_READ, 3 * CHUNK, 100) == content[3 * CHUNK : 3 * CHUNK + 100]
        client.close()
        server.ask("flush")
        assert server.status()["missing_chunks"] == 127
        server.ask("stop")
        until(lambda: not (spot / "control").exists(), "end")
        assert server._process is not None
        assert server._process.wait(PATIENCE_S) == 0
        assert not (spot / "nbd").exists()
        server.start()
        assert server.status()["missing_chunks"] == 127
        server.ask("resume")
        until(lambda: server.status()["complete"], "end of the hydration")
        # A fetch is counted when it has landed, and by then it is complete already.
        until(lambda: server.status()["statistics"]["background_bytes"] == 127 * CHUNK, "count of the last fetch")
        assert server.status()["statistics"]["demand_bytes"] == 0
        assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == content
    with pytest.raises(Unavailable, match="does not answer"):
        ask(spot / "control", "status")


def test_only_one_server_for_a_target(spot: Path) -> None:
    make_source(spot / "source.raw", SIZE)
    config = config_for(spot, SIZE)
    with process(spot, config):
        other = spot / "other.json"
        other.write_text(config.model_copy(update={"control_path": str(spot / "c2")}).model_dump_json(), "utf-8")
        argv = [sys.executable, "-m", "whimbrel.stream", str(other)]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 1
        assert "another process is streaming into this target" in done.stderr
    other.write_text("{}", encoding="utf-8")
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2


def test_systemd_is_told(spot: Path) -> None:
    make_source(spot / "source.raw", SIZE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(spot / "notify"))
        sock.settimeout(PATIENCE_S)
        os.environ["NOTIFY_SOCKET"] = str(spot / "notify")
        try:
            with process(spot, config_for(spot, SIZE)) as server:
                assert sock.recv(100) == b"READY=1"
                assert server.terminate() == 0
                assert sock.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


@pytest.mark.parametrize(
    "spoil", ["target gone", "durable gone", "live gone", "another size", "another source", "no map"]
)
def test_what_does_not_belong_together_is_refused(spot: Path, spoil: str) -> None:
    make_source(spot / "source.raw", SIZE)
    config = config_for(spot, SIZE)
    device, chunkmap = open_target(config)
    device.write_from(0, memoryview(b"data"))
    chunkmap.mark_local(0, 1)
    chunkmap.harden(chunkmap.take_changes())
    chunkmap.close()
    device.close()
    match spoil:
        case "target gone":
            (spot / "target.raw").unlink()
        case "durable gone":
            (spot / "map.durable").unlink()
        case "live gone":
            (spot / "map.live").unlink()
        case "another size":
            config = config.model_copy(update={"size_bytes": SIZE + 512})
        case "another source":
            config = config.model_copy(update={"source_identity": "another"})
        case "no map":
            config = config.model_copy(update={"map_stem": str(spot / "elsewhere")})
    with pytest.raises(Conflict):
        open_target(config)


@pytest.mark.interop
def test_the_source_dies_and_comes_back(spot: Path) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE, share=1.0))
    delay = ("--readonly", "--filter=delay", "file", str(spot / "source.raw"), "delay-read=5ms")
    # So slow that it is not whole before the source is killed, however late that is.
    config = config_for(spot, SIZE, NbdEndpoint(unix_path=str(spot / "k.sock")), bandwidth_bytes_per_s=300e3)
    with contextlib.ExitStack() as first:
        first.enter_context(nbdkit(spot, *delay))
        server = first.enter_context(process(spot, config))
        alive = first.pop_all()
    with alive:
        until(lambda: 0 < server.status()["missing_chunks"] < 124, "hydration")
        _kill_server_at(spot / "k.sock", alive)
        until(lambda: server.status()["source"]["error"], "loss of the source")
        client = RawClient(spot / "nbd")
        missing = SIZE // CHUNK - 1
        reading = client.post(p.CMD_READ, missing * CHUNK, 512)
        writing = client.post(p.CMD_WRITE, (missing - 1) * CHUNK + 7, data=b"partial")
        client.post(p.CMD_WRITE, (missing - 2) * CHUNK, data=b"w" * CHUNK)
        client.take()  # the whole chunk needs no source
        flush = client.post(p.CMD_FLUSH)
        assert client.take() == (flush, 0, b"")
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.read(1)
        client.sock.settimeout(PATIENCE_S)
        assert server.status()["waiting_chunks"] == 2
        assert server.status()["source"]["away_s"] > 0
        with nbdkit(spot, *delay):
            answers = {cookie: data for cookie, _, data in (client.take(), client.take())}
            assert answers == {reading: bytes(content[missing * CHUNK :][:512]), writing: b""}
            server.ask("set-bandwidth", bytes_per_s=None)
            until(lambda: server.status()["complete"], "end of the hydration")
            assert server.status()["source"]["error"] is None
        at = (missing - 1) * CHUNK + 7
        content[at : at + 7] = b"partial"
        content[at - 7 - CHUNK : at - 7] = b"w" * CHUNK
        client.close()
        assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == content


def _kill_server_at(sock: Path, stack: contextlib.ExitStack) -> None:
    """End the nbdkit that listens at ``sock``: it is the child of ours with the path in its arguments."""
    del stack
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            arguments = (entry / "cmdline").read_bytes()
            if arguments.startswith(b"nbdkit") and f"--unix={sock}".encode() in arguments:
                os.kill(int(entry.name), 9)
    sock.unlink()


def test_by_policy_a_long_absence_is_an_error(spot: Path) -> None:
    make_source(spot / "source.raw", SIZE)
    config = config_for(spot, SIZE, NbdEndpoint(unix_path=str(spot / "nobody")), source_fail_after_s=0.5)
    with process(spot, config):
        client = RawClient(spot / "nbd")
        with pytest.raises(Refused) as refused:
            client.ask(p.CMD_READ, 0, 512)
        assert refused.value.args == (p.EIO,)
        client.ask(p.CMD_WRITE, 0, data=b"x" * CHUNK, flags=p.CMD_FLAG_FUA)
        client.close()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories ``server``, ``client`` and ``stranger`` (a client of another CA)."""
    root = tmp_path_factory.mktemp("pki")
    for name in ("server", "client", "stranger"):
        (root / name).mkdir()
    certificate(root / "server", "ca", None, "ca", "cert_signing_key")
    certificate(root / "stranger", "ca", None, "ca", "cert_signing_key")
    names = ("dns_name = localhost", "ip_address = 127.0.0.1")
    certificate(root / "server", "server", root / "server", "tls_www_server", "signing_key", *names)
    certificate(root / "client", "client", root / "server", "tls_www_client", "signing_key")
    certificate(root / "stranger", "client", root / "stranger", "tls_www_client", "signing_key")
    shutil.copy(root / "server" / "ca-cert.pem", root / "client")
    shutil.copy(root / "server" / "ca-cert.pem", root / "stranger")
    return root


@contextlib.contextmanager
def tls_source(pki: Path, image: Path) -> Iterator[NbdEndpoint]:
    port = lend_port()
    argv = ["qemu-nbd", "-t", "-e", "16", "-r", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), "--tls-creds", "t"]
    argv += ["--object", f"tls-creds-x509,id=t,dir={pki / 'server'},endpoint=server,verify-peer=yes", str(image)]
    with running(*argv, port=port):
        yield NbdEndpoint(host="127.0.0.1", port=port, tls=TlsPaths(directory=str(pki / "client")))


@pytest.mark.interop
def test_tls_on_both_sides(spot: Path, pki: Path) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    with tls_source(pki, spot / "source.raw") as source:
        listen = (ListenAt(unix_path=str(spot / "nbd")), ListenAt(host="127.0.0.1"))
        tls = ServerTls(directory=str(pki / "server"))
        with process(spot, config_for(spot, SIZE, source, listen=listen, tls=tls)) as server:
            (port,) = server.status()["ports"]
            uri = f"nbds://127.0.0.1:{port}/?tls-certificates={pki / 'client'}"
            run("nbdcopy", uri, str(spot / "out"))
            assert (spot / "out").read_bytes() == content
            paths = TlsPaths(directory=str(pki / "client"))
            endpoint = NbdEndpoint(host="127.0.0.1", port=port, tls=paths, writable=True)
            device = open_nbd(endpoint, timeout_s=PATIENCE_S)
            lane, data = device.lane(), random.Random(3).randbytes(6 * MIB)
            for start in range(0, len(data), MIB):
                lane.submit_write(start + 100, memoryview(data)[start : start + MIB])
            back = memoryview(bytearray(MIB))
            while lane.in_flight:
                lane.reap()
            lane.flush()
            # Both directions of one TLS connection at once, from several threads of the server.
            for start in range(0, SIZE - MIB, CHUNK):
                lane.submit_read(start, memoryview(bytearray(MIB)))
                if start % (4 * CHUNK) == 0:
                    lane.submit_write(100, memoryview(data)[:MIB])
                    lane.submit_zero(7 * MIB, CHUNK)
            while lane.in_flight:
                lane.reap()
            content[100 : 100 + len(data)] = data
            content[7 * MIB : 7 * MIB + CHUNK] = bytes(CHUNK)
            lane.submit_read(0, back)
            lane.reap()
            assert back == content[:MIB]
            device.close()
            for bad in (None, TlsPaths(directory=str(pki / "stranger"))):
                # The server's verdict on a certificate may come as an alert, or as a closed connection.
                with pytest.raises(WhimbrelError):
                    open_nbd(endpoint.model_copy(update={"tls": bad}), timeout_s=PATIENCE_S).lane().flush()
            client_of(server.config).close()  # the unix socket is for local users and stays in clear
            until(lambda: server.status()["complete"], "end of the hydration")
            assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == content


def test_many_clients_of_ours_while_it_hydrates_and_dies(spot: Path) -> None:
    """Parallel readers of everything, a kill in the middle, and every byte right before and after."""
    content = make_source(spot / "source.raw", SIZE)
    server = Process(spot, config_for(spot, SIZE, bandwidth_bytes_per_s=3e6))
    failures: list[str] = []

    def reader(seed: int) -> None:
        rng, deadline = random.Random(seed), time.monotonic() + PATIENCE_S
        checked = 0
        while checked < 200 and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                client = RawClient(spot / "nbd")
                while checked < 200:
                    start = rng.randrange(SIZE - 200_000)
                    if client.ask(p.CMD_READ, start, 200_000) != content[start : start + 200_000]:
                        failures.append(f"wrong bytes at {start}")
                    checked += 1
        if checked < 200:
            failures.append("not finished")

    try:
        server.start()
        readers = [threading.Thread(target=reader, args=(seed,), daemon=True) for seed in range(3)]
        for thread in readers:
            thread.start()
        time.sleep(0.3)
        server.kill()
        server.start()
        for thread in readers:
            thread.join(PATIENCE_S)
        assert not failures
        assert server.status()["written_chunks"] == 0
    finally:
        server.kill()
