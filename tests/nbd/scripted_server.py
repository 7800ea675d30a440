"""An NBD server that says what a test tells it to, also what no server should.

It is written from the protocol document, apart from the client's own tables, so that both would have to be wrong in
the same way to agree.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ACK, SERVER, INFO, META = 1, 2, 3, 4
ERROR = 1 << 31
READ, WRITE, DISC, FLUSH, ZEROES, STATUS = 0, 1, 2, 3, 6, 7
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_ZEROES, MULTI_CONN = 1, 2, 4, 64, 256
ALL_FLAGS = HAS_FLAGS | SEND_FLUSH | SEND_ZEROES | MULTI_CONN
SIZE = 1 << 20


class Asked(NamedTuple):
    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes


@dataclass
class Offer:
    """What the server offers in an honest handshake."""

    size: int = SIZE
    flags: int = ALL_FLAGS
    structured: bool = True
    contexts: dict[str, int] = field(default_factory=lambda: {"base:allocation": 1})
    blocks: tuple[int, int, int] | None = None
    exports: tuple[str, ...] = ("",)
    refuse: dict[int, int] = field(default_factory=dict)
    """Option -> error reply."""


class Session:
    """One connection, seen from the server."""

    def __init__(self, sock: socket.socket, offer: Offer) -> None:
        self.sock = sock
        self.offer = offer

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def greet(self, flags: int = 3) -> None:
        self.send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags))
        self.read(4)

    def option(self) -> tuple[int, bytes]:
        magic, option, length = struct.unpack(">8sII", self.read(16))
        assert magic == b"IHAVEOPT"
        return option, self.read(length)

    def answer(self, option: int, reply: int, data: bytes = b"", magic: int = 0x3E889045565A9) -> None:
        self.send(struct.pack(">QIII", magic, option, reply, len(data)) + data)

    def negotiate(self) -> None:
        """The honest handshake, up to transmission."""
        offer = self.offer
        self.greet()
        while True:
            option, data = self.option()
            if option in offer.refuse:
                self.answer(option, offer.refuse[option], b"no")
            elif option == 2:
                self.answer(option, ACK)
                raise EOFError
            elif option == 3:
                for name in offer.exports:
                    self.answer(option, SERVER, struct.pack(">I", len(name.encode())) + name.encode())
                self.answer(option, ACK)
            elif option == 8 and offer.structured:
                self.answer(option, ACK)
            elif option == 10:
                self.contexts(data)
            elif option == 7:
                name = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
                if name not in offer.exports:
                    self.answer(option, ERROR | 6, b"who?")
                    continue
                self.answer(option, INFO, struct.pack(">HQH", 0, offer.size, offer.flags))
                if offer.blocks:
                    self.answer(option, INFO, struct.pack(">HIII", 3, *offer.blocks))
                self.answer(option, ACK)
                return
            else:
                self.answer(option, ERROR | 1)

    def contexts(self, data: bytes) -> None:
        position = 4 + int.from_bytes(data[:4], "big")
        count = int.from_bytes(data[position : position + 4], "big")
        position += 4
        for _ in range(count):
            length = int.from_bytes(data[position : position + 4], "big")
            name = data[position + 4 : position + 4 + length].decode()
            position += 4 + length
            if name in self.offer.contexts:
                self.answer(10, META, struct.pack(">I", self.offer.contexts[name]) + name.encode())
        self.answer(10, ACK)

    def request(self) -> Asked:
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", self.read(28))
        assert magic == 0x25609513
        if command == DISC:
            raise EOFError
        return Asked(flags, command, cookie, offset, length, self.read(length) if command == WRITE else b"")

    def simple(self, cookie: int, error: int = 0, data: bytes = b"", magic: int = 0x67446698) -> None:
        self.send(struct.pack(">IIQ", magic, error, cookie) + data)

    def chunk(self, cookie: int, kind: int, data: bytes = b"", *, done: bool = True) -> None:
        self.send(struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(data)) + data)

    def data(self, cookie: int, offset: int, data: bytes, *, done: bool = True) -> None:
        self.chunk(cookie, 1, struct.pack(">Q", offset) + data, done=done)

    def hole(self, cookie: int, offset: int, length: int, *, done: bool = True) -> None:
        self.chunk(cookie, 2, struct.pack(">QI", offset, length), done=done)

    def status(self, cookie: int, context: int, *runs: tuple[int, int], done: bool = True) -> None:
        body = struct.pack(">I", context) + b"".join(struct.pack(">II", *run) for run in runs)
        self.chunk(cookie, 5, body, done=done)

    def silent(self) -> None:
        """Say nothing until the client goes away."""
        while self.sock.recv(1 << 16):
            pass


Script = Callable[[Session], None]


def silence(session: Session) -> None:
    session.silent()


class ScriptedServer:
    """Accepts on ``path``; the n-th connection runs the n-th of ``scripts`` (the last one goes on) after ``first``."""

    def __init__(self, path: Path, offer: Offer, scripts: list[Script], first: Script = Session.negotiate) -> None:
        self.path = path
        self.failures: list[BaseException] = []
        self._offer, self._scripts, self._first = offer, scripts, first
        self._sessions: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        count = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(count, len(self._scripts) - 1)]
            count += 1
            self._sessions.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock, script), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, script: Script) -> None:
        try:
            with sock:
                session = Session(sock, self._offer)
                self._first(session)
                script(session)
        except (EOFError, OSError):
            return
        except BaseException as failed:
            self.failures.append(failed)

    def close(self) -> None:
        for sock in [self._listener, *self._sessions]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(20)
            assert not thread.is_alive()
        if self.failures:
            raise self.failures[0]
