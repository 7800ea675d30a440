"""A client that says exactly what a test wants said: the old handshake, any command, any flag, simple replies."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from whimbrel.nbd import protocol as p


class Refused(Exception):
    """The server answered with this error number."""


class Reading:
    """A socket from which whole messages are read."""

    sock: socket.socket

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            if not part:
                raise ConnectionError("the server closed the connection")
            data += part
        return data

    def close(self) -> None:
        self.sock.close()


class RawClient(Reading):
    """Connected with NBD_OPT_EXPORT_NAME. One request at a time by ``ask``; or ``post`` and ``take`` by hand."""

    def __init__(self, path: Path, export: bytes = b"", *, timeout_s: float = 90.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout_s)
        self.sock.connect(str(path))
        self.read(p.GREETING.size)
        self.sock.sendall(p.UINT32.pack(p.FLAG_FIXED_NEWSTYLE))
        self.sock.sendall(p.OPTION_HEADER.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(export)) + export)
        self.size, self.flags = p.EXPORT_NAME_REPLY.unpack(self.read(p.EXPORT_NAME_REPLY.size))
        assert self.read(p.EXPORT_NAME_ZEROES) == bytes(p.EXPORT_NAME_ZEROES)
        self.cookie = 0
        self.lengths: dict[int, int] = {}

    def post(self, command: int, offset: int = 0, length: int = 0, *, data: bytes = b"", flags: int = 0) -> int:
        self.cookie += 1
        self.lengths[self.cookie] = length if command == p.CMD_READ else 0
        header = p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self.cookie, offset, len(data) or length)
        self.sock.sendall(header + data)
        return self.cookie

    def take(self) -> tuple[int, int, bytes]:
        """Cookie, error and data of the next reply."""
        magic, error, cookie = p.SIMPLE_REPLY.unpack(self.read(p.SIMPLE_REPLY.size))
        assert magic == p.SIMPLE_REPLY_MAGIC
        return cookie, error, self.read(self.lengths.pop(cookie)) if not error else b""

    def ask(self, command: int, offset: int = 0, length: int = 0, *, data: bytes = b"", flags: int = 0) -> bytes:
        wanted = self.post(command, offset, length, data=data, flags=flags)
        cookie, error, answer = self.take()
        assert cookie == wanted
        if error:
            raise Refused(error)
        return answer


class OptionClient(Reading):
    """A client that stays in the negotiation."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(90)
        self.sock.connect(str(path))
        self.read(p.GREETING.size)
        self.sock.sendall(p.UINT32.pack(p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES))

    def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """All replies up to ACK or error."""
        self.sock.sendall(p.OPTION_HEADER.pack(p.OPTION_MAGIC, option, len(data)) + data)
        found = []
        while True:
            magic, answered, reply, length = p.OPTION_REPLY_HEADER.unpack(self.read(p.OPTION_REPLY_HEADER.size))
            assert (magic, answered) == (p.OPTION_REPLY_MAGIC, option)
            found.append((reply, self.read(length)))
            if reply == p.REP_ACK or reply & p.REP_ERROR_BIT:
                return found


def counted(text: bytes) -> bytes:
    """A string with its length in front."""
    return struct.pack(">I", len(text)) + text
