"""A rate-limiting proxy that stands in front of one real API: its refusals are real, and so are the answers behind."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import requests

Form = Literal["seconds", "date"]
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host"}


class Proxy:
    """``url`` leads to ``upstream``. More than ``calls`` requests in ``span_s`` seconds are refused with ``status``."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.calls = 1_000_000
        self.span_s = 1.0
        self.status = 429
        self.pause_s = 2
        self.form: Form = "seconds"
        self.newest: str | None = None
        """Version to be told in place of the real newest one: an older server."""
        self.refused = 0
        self.passed = 0
        self.too_early = 0
        """Requests that came within a pause that was asked for."""
        self.most_at_once = 0
        self._at_once = 0
        self._until = 0.0
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                status, headers, body = proxy.answer(
                    self.command, self.path, dict(self.headers), self.rfile.read(length)
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the library's own names

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Refuse, or ask the real API."""
        if not self._admitted():
            return self.status, {"Retry-After": self._told(), "Content-Type": "text/plain"}, b"This was rate-limited."
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
            real = requests.request(
                method, self.upstream + path, headers=kept, data=body, timeout=60, allow_redirects=False
            )
        finally:
            with self._lock:
                self._at_once -= 1
        told = {name: value for name, value in real.headers.items() if name.lower() not in HOP_BY_HOP}
        text = real.content.replace(self.upstream.encode(), self.url.encode())
        if self.newest is not None and b'"version"' in text:
            text = _older(text, self.newest)
        return real.status_code, told, text

    def _admitted(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if now < self._until:
                self.too_early += 1
                self.refused += 1
                return False
            while self._recent and self._recent[0] <= now - self.span_s:
                self._recent.popleft()
            if len(self._recent) >= self.calls:
                self.refused += 1
                self._until = now + self.pause_s - 1.0  # a date has whole seconds
                return False
            self._recent.append(now)
            self.passed += 1
            return True

    def _told(self) -> str:
        if self.form == "seconds":
            return str(self.pause_s)
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.pause_s), usegmt=True)

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        """Listen inside the ``with``."""
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _older(text: bytes, newest: str) -> bytes:
    """A version document whose newest microversion is another one."""
    told = json.loads(text)
    for entry in [told["version"]] if "version" in told else told.get("versions", []):
        if entry.get("version"):
            entry["version"] = newest
        if entry.get("max_version"):
            entry["max_version"] = newest
    return json.dumps(told).encode()
