"""The command channel against a scripted other end: noise, silence, refusal, a guest that goes away."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labs.kvm import channel
from labs.kvm.channel import GuestError
from labs.kvm.errors import LabError

Answer = Callable[[str, str], bytes | None]


class ScriptedGuest:
    """Serves one line per connection; ``answer(token, command)`` returns the bytes to send, None to hang up."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.commands: list[str] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    token, _, command = line.decode().strip().partition(" ")
                    if not token:
                        continue
                    self.commands.append(command)
                    reply = self._answer(token, command)
                    if reply is None:
                        break
                    with contextlib.suppress(OSError):  # whoever asked has lost patience, and asks again
                        connection.sendall(reply)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wbc") as directory:
        yield Path(directory) / "s"


def serve(path: Path, answer: Answer) -> ScriptedGuest:
    return ScriptedGuest(path, answer)


def polite(token: str, command: str) -> bytes:
    return f"{token} {'pong' if command == 'ping' else 'seen ' + command}\n".encode()


def test_the_reply_is_the_line_with_the_token(path: Path) -> None:
    def noisy(token: str, command: str) -> bytes:
        return b"tdeadbeef an older answer\r\ngarbage\xff\n" + polite(token, command)

    guest = serve(path, noisy)
    assert channel.command(path, "hash vda 0 4096", 60) == "seen hash vda 0 4096"
    guest.close()
    sent = [command for command in guest.commands if command != "ping"]
    assert sent == ["hash vda 0 4096"], "a command is sent once, only the ping may be repeated"


def test_an_error_of_the_guest_is_raised(path: Path) -> None:
    def refusing(token: str, command: str) -> bytes:
        return polite(token, command) if command == "ping" else f"{token} ERROR no disk vdz\n".encode()

    guest = serve(path, refusing)
    with pytest.raises(GuestError, match="no disk vdz"):
        channel.command(path, "hash vdz", 60)
    guest.close()


def test_no_socket_and_no_answer_are_said(path: Path) -> None:
    with pytest.raises(LabError, match="did not answer"):
        channel.command(path, "ping", 0.3)
    guest = serve(path, lambda _token, _command: b"")
    with pytest.raises(LabError, match="did not answer"):
        channel.command(path, "ping", 0.5)
    guest.close()


def test_a_guest_that_goes_away_in_the_middle_is_said(path: Path) -> None:
    guest = serve(path, lambda token, command: polite(token, command) if command == "ping" else None)
    with pytest.raises(LabError, match="went away"):
        channel.command(path, "sync", 60)
    guest.close()


def test_a_guest_that_comes_up_late_is_waited_for(path: Path) -> None:
    started: list[ScriptedGuest] = []
    timer = threading.Timer(0.5, lambda: started.append(serve(path, polite)))
    timer.start()
    assert channel.command(path, "sync", 60) == "seen sync"
    timer.join()
    started[0].close()
