"""The listening socket outlives every process but the last: no reader is ever refused."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stream.http.servers import Client, http_config
from tests.stream.streams import MIB, REPOSITORY, make_source, until
from tests.stream.test_launch import why_not
from whimbrel.errors import WhimbrelError
from whimbrel.stream import StreamConfig, ask, held, launch, stop
from whimbrel.stream.http.token import url
from whimbrel.stream.launch import _supervisor

SIZE = 8 * MIB


class Stream:
    """A launched stream, its processes, and a reader that notes every failure."""

    def __init__(self, spot: Path) -> None:
        self.spot = spot
        self.content = make_source(spot / "source.raw", SIZE)
        self.config: StreamConfig = http_config(spot, SIZE)
        self.file = spot / "disk.json"
        self.file.write_text(self.config.model_dump_json(), encoding="utf-8")
        self.failures: list[str] = []
        self.reads = 0
        self._ending = threading.Event()

    def launch(self) -> None:
        launch(self.file)

    @property
    def port(self) -> int:
        return int(ask(self.spot / "control", "status")["http"]["port"])

    def server(self) -> int:
        try:
            return int(ask(self.spot / "control", "status")["pid"])
        except WhimbrelError:
            return 0

    def supervisor(self) -> int:
        return _supervisor(self.file) or 0

    def holder(self) -> int:
        return held.holder(self.file) or 0

    def replaced(self, pid: int) -> None:
        """Wait for another server than ``pid``."""
        until(lambda: self.server() not in {0, pid}, "next server")

    def has_socket(self, pid: int) -> bool:
        """Whether a process holds the listening socket, by the kernel's tables (proc(5): state 0A is listening)."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == self.port}
        with contextlib.suppress(OSError):
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            return any(f"socket:[{inode}]" in links for inode in inodes)
        return False

    def kill(self, pid: int) -> None:
        assert pid > 1
        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Read as librbd does: anew on a new connection when one ends, but a refused connection is an error."""
        thread = threading.Thread(target=self._read, args=(self.port,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join(60)
            assert not thread.is_alive()

    def _read(self, port: int) -> None:
        client = Client(self.config, port)
        while not self._ending.is_set():
            start = self.reads * 4096 % SIZE
            try:
                if client.read(start, 4096) != self.content[start : start + 4096]:
                    self.failures.append("wrong bytes")
                self.reads += 1
                time.sleep(0.002)
            except ConnectionRefusedError:
                self.failures.append("refused")
                client = Client(self.config, port)
            except (OSError, EOFError, Exception) as gone:
                if type(gone).__name__ not in {
                    "RemoteDisconnected",
                    "ConnectionResetError",
                    "IncompleteRead",
                    "BrokenPipeError",
                }:
                    self.failures.append(repr(gone))
                client = Client(self.config, port)

    def more_reads(self) -> None:
        before = self.reads
        until(lambda: self.reads > before + 20, "reads that go on")


@pytest.fixture
def stream(spot: Path) -> Iterator[Stream]:
    made = Stream(spot)
    yield made
    stop(spot / "control", config_path=made.file)
    assert held.holder(made.file) is None
    left = subprocess.run(["pgrep", "-f", str(spot)], capture_output=True, text=True, check=False).stdout.split()
    assert not left


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_kills_of_the_server_are_not_noticed_by_a_reader(stream: Stream, kills: int) -> None:
    stream.launch()
    with stream.read():
        for _ in range(kills):
            stream.more_reads()
            pid = stream.server()
            stream.kill(pid)
            stream.replaced(pid)
        stream.more_reads()
    assert not stream.failures


def test_without_a_holder_a_kill_refuses_readers(spot: Path) -> None:
    """What the holder is for: a server alone takes its socket with it."""
    stream = Stream(spot)
    server = subprocess.Popen([sys.executable, "-m", "whimbrel.stream", str(stream.file)], cwd=REPOSITORY)
    try:
        until(stream.server, "server")
        with stream.read():
            stream.more_reads()
            server.kill()
            server.wait()
            until(lambda: stream.failures, "a refused reader")
        assert set(stream.failures) == {"refused"}
    finally:
        server.kill()
        server.wait()


def test_supervisor_and_holder_are_replaced_and_the_port_stays(stream: Stream) -> None:
    stream.launch()
    port, first = stream.port, stream.server()
    with stream.read():
        stream.kill(stream.supervisor())
        until(lambda: not stream.supervisor(), "end of the supervisor")
        stream.more_reads()
        assert stream.server() == first
        stream.launch()
        assert stream.supervisor()
        assert stream.server() == first
        # It asks the holder as soon as it runs, and until then the two that die next are all who have the socket.
        until(lambda: stream.has_socket(stream.supervisor()), "socket in the supervisor's hands")

        old = stream.holder()
        stream.kill(old)
        stream.kill(first)
        stream.replaced(first)
        until(lambda: stream.holder() not in {0, old}, "another holder")
        stream.more_reads()

        last = stream.server()
        stream.kill(stream.supervisor())
        stream.kill(last)
        time.sleep(0.5)
        stream.launch()
        assert stream.server() not in {0, last}
        assert stream.port == port
        stream.more_reads()
    assert not stream.failures


def test_an_orderly_stop_refuses_readers_and_one_that_keeps_the_socket_does_not(stream: Stream) -> None:
    stream.launch()
    port = stream.port
    stop(stream.spot / "control", config_path=stream.file, keep_socket=True)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as waiting:
        waiting.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        stream.launch()
        assert stream.port == port
        waiting.settimeout(30)
        assert b" 404 " in waiting.recv(100)
    stop(stream.spot / "control", config_path=stream.file)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=30)


def test_a_free_port_is_found_again_after_all_have_died(stream: Stream) -> None:
    stream.launch()
    port = stream.port
    for pid in (stream.supervisor(), stream.holder(), stream.server()):
        stream.kill(pid)
    until(lambda: not (stream.supervisor() or stream.holder() or stream.server()), "end of all")
    stream.launch()
    assert stream.port == port


def test_the_token_is_in_no_command_line(stream: Stream) -> None:
    stream.launch()
    secret = url("127.0.0.1", stream.port, stream.spot / "disk.token").rpartition("/")[2]
    for pid in (stream.supervisor(), stream.holder(), stream.server()):
        for kind in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{pid}/{kind}").read_bytes()
    assert secret not in Path(f"{stream.file}.log").read_text()
    assert not (stream.spot / "control.hold").stat().st_mode & 0o077


def test_an_address_that_is_not_ours_is_said(stream: Stream) -> None:
    assert stream.config.http is not None
    http = stream.config.http.model_copy(update={"address": "192.0.2.1"})
    stream.file.write_text(stream.config.model_copy(update={"http": http}).model_dump_json(), encoding="utf-8")
    until(lambda: "cannot hold 192.0.2.1" in why_not(stream.file), "the reason")


def test_systemd_keeps_the_socket_for_the_next_server(spot: Path) -> None:
    """The protocol of sd_notify(3) and sd_listen_fds(3), with this test in the role of systemd."""
    stream = Stream(spot)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(spot / "notify"))
        notified.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(spot / "notify")}
        command = [sys.executable, "-m", "whimbrel.stream", str(stream.file)]
        first = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
        try:
            message, fds, _, _ = socket.recv_fds(notified, 4096, 4)
            assert message == b"FDSTORE=1\nFDNAME=http"
            assert notified.recv(100) == b"READY=1"
            with socket.socket(fileno=fds[0]) as kept:
                port = kept.getsockname()[1]
                first.kill()
                first.wait()
                with socket.create_connection(("127.0.0.1", port), timeout=30):
                    # As systemd would: the descriptor is number 3, and the pid is that of the program.
                    wrapped = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http "$@" 3<&"$FD"'
                    second = subprocess.Popen(
                        ["bash", "-c", wrapped, "bash", *command],
                        cwd=REPOSITORY,
                        env={**environment, "FD": str(kept.fileno())},
                        pass_fds=(kept.fileno(),),
                    )
                    try:
                        until(stream.server, "second server")
                        assert stream.port == port
                        assert Client(stream.config, port).read(0, 512) == stream.content[:512]
                    finally:
                        second.kill()
                        second.wait()
        finally:
            first.kill()
            first.wait()
