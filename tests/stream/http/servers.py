"""A streaming server with its HTTP side, in this process, and clients of it."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

from tests.stream.streams import config_for
from whimbrel.model.endpoint import FileEndpoint, NbdEndpoint
from whimbrel.stream import StreamConfig
from whimbrel.stream.config import HttpListen
from whimbrel.stream.http.token import ensure_token, read_token


def http_config(
    directory: Path,
    size: int,
    source: NbdEndpoint | FileEndpoint | None = None,
    *,
    bulk_from: tuple[str, ...] = (),
    **more: Any,
) -> StreamConfig:
    """A server of ``directory/source.raw`` at a free port of 127.0.0.1."""
    ensure_token(directory / "disk.token")
    listen = HttpListen(address="127.0.0.1", token_path=str(directory / "disk.token"), bulk_from=bulk_from)
    return config_for(directory, size, source, listen=(), http=listen, **more)


def path_of(config: StreamConfig) -> str:
    """The URL's path."""
    assert config.http is not None
    return "/" + read_token(Path(config.http.token_path))


class Client:
    """One keep-alive connection."""

    def __init__(self, config: StreamConfig, port: int, timeout_s: float = 60) -> None:
        assert config.http is not None
        self.path = path_of(config)
        self.connection = http.client.HTTPConnection(config.http.address, port, timeout=timeout_s)

    def ask(self, method: str = "GET", path: str | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body, headers by lower-case name; underscores in header names become dashes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, self.path if path is None else path, headers=named)
        response = self.connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}

    def read(self, start: int, length: int) -> bytes:
        """A range, which must be answered with 206."""
        status, body, _ = self.ask(Range=f"bytes={start}-{start + length - 1}")
        assert status == 206, status
        return body

    def close(self) -> None:
        self.connection.close()
