"""A disk behind HTTP for imports, with hands on how it answers: as it should, with an error, or not yet."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HttpSource:
    """Serves ``content`` at ``url``, which holds a secret as the gateway's does."""

    def __init__(self, content: bytes, host: str = "127.0.0.1") -> None:
        self.content = content
        self.failing = False
        """Answer 503, as no gateway of ours ever does."""
        self.fetched: list[tuple[int, int]] = []
        """Offset and length of what was asked for."""
        self.hold_after: int | None = None
        """Answer so many, and then nothing until ``go_on``."""
        self._going = threading.Event()
        self._going.set()
        self.token = secrets.token_hex(16)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_HEAD(self) -> None:
                self._answer(200, b"", len(outer.content))

            def do_GET(self) -> None:
                if outer.hold_after is not None and len(outer.fetched) >= outer.hold_after:
                    outer.hold()
                outer._going.wait(120)
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if outer.failing or found is None or self.path != f"/{outer.token}":
                    self._answer(503, b"", 0)
                    return
                first, last = int(found[1]), min(int(found[2]), len(outer.content) - 1)
                outer.fetched.append((first, last - first + 1))
                self._answer(206, outer.content[first : last + 1], last - first + 1)

            def _answer(self, status: int, body: bytes, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}/{self.token}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Answer nothing that is asked for from now on, until ``go_on``."""
        self._going.clear()

    def go_on(self) -> None:
        """Answer again, also what waits."""
        self.hold_after = None
        self._going.set()

    def end(self) -> None:
        """Refuse connections from now on."""
        self.go_on()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def http_source(content: bytes, host: str = "127.0.0.1") -> Iterator[HttpSource]:
    """A source for one test."""
    source = HttpSource(content, host)
    try:
        yield source
    finally:
        source.end()
