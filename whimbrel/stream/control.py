"""The control socket: one JSON object per line in, one out.

``{"verb": "status"}`` and so on; the answer is ``{"ok": true, ...}`` or ``{"ok": false, "error": "..."}``. Verbs:
``status``, ``set-window`` (``bytes`` or null), ``set-bandwidth`` (``bytes_per_s`` or null), ``pause``, ``resume`` (the
background, and who copies over HTTP), ``prefetch`` (what the predictors do, and the hit rate of reads), ``flush``,
``drain`` (``timeout_s``; the answer's ``drained`` says whether the shadow has everything), ``source`` and ``shadow``
(``endpoint``: the same disk is served elsewhere from now on; the caller rewrites the configuration file for the next
start), ``let-go`` (writes need no shadow any more; the answer's ``let_go`` is false while a crash of the host is made
good from it; the caller rewrites the configuration file), ``stop``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from whimbrel.errors import InvalidPlan, Unavailable, WhimbrelError
from whimbrel.stream.config import SourceEndpoint
from whimbrel.stream.listener import listen_unix
from whimbrel.stream.protect.shadow import ShadowEndpoint
from whimbrel.stream.server import StreamServer

MAX_LINE_BYTES: Final = 64 << 10
ASK_TIMEOUT_S: Final = 60.0
DRAIN_S: Final = 30.0

log = logging.getLogger(__name__)


class Control:
    """Answers at ``path`` until ``close``. ``stop`` is called for the verb of that name, after its answer."""

    def __init__(self, path: Path, server: StreamServer, stop: Callable[[], None]) -> None:
        self._path = path
        self._server = server
        self._stop = stop
        self._sock = listen_unix(path)
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), name="control-client", daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as stream, contextlib.suppress(OSError, ValueError):
            while line := stream.readline(MAX_LINE_BYTES):
                answer, stopping = self._answer(line)
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()
                if stopping:
                    self._stop()

    def _answer(self, line: bytes) -> tuple[dict[str, object], bool]:
        try:
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise InvalidPlan("a request is a JSON object")
            verb = asked.get("verb")
            return {"ok": True, **self._do(verb, asked)}, verb == "stop"
        except (ValueError, TypeError, WhimbrelError) as error:
            return {"ok": False, "error": str(error)}, False

    def _do(self, verb: object, asked: dict[str, Any]) -> dict[str, object]:
        fetcher = self._server.fetcher
        match verb:
            case "status":
                return self._server.status()
            case "prefetch":
                return {**self._server.prefetch.report(), "reads": fetcher.statistics.reads()}
            case "set-window":
                size = asked["bytes"] if "bytes" in asked else _lacks("bytes")
                fetcher.window.fix(None if size is None else int(size))
            case "set-bandwidth":
                rate = asked["bytes_per_s"] if "bytes_per_s" in asked else _lacks("bytes_per_s")
                self._server.set_bandwidth(None if rate is None else float(rate))
            case "pause" | "resume":
                self._server.pause(verb == "pause")
            case "flush":
                self._server.store.flush()
            case "source":
                self._server.move_source(_SOURCE.validate_python(_endpoint(asked)))
            case "shadow":
                self._server.move_shadow(_SHADOW.validate_python(_endpoint(asked)))
            case "let-go":
                return {"let_go": self._server.let_shadow_go()}
            case "drain":
                protection = self._server.protection
                patience_s = float(asked.get("timeout_s", DRAIN_S))
                return {"drained": protection is None or protection.drain(patience_s)}
            case "stop":
                pass
            case _:
                raise InvalidPlan(f"unknown verb {verb!r}")
        return {}


_SOURCE: Final[TypeAdapter[SourceEndpoint]] = TypeAdapter(Annotated[SourceEndpoint, Field(discriminator="kind")])
_SHADOW: Final[TypeAdapter[ShadowEndpoint]] = TypeAdapter(Annotated[ShadowEndpoint, Field(discriminator="kind")])


def _endpoint(asked: dict[str, Any]) -> Any:
    return asked["endpoint"] if "endpoint" in asked else _lacks("endpoint")


def _lacks(name: str) -> Any:
    raise InvalidPlan(f"the request lacks {name!r}")


def ask(path: Path, verb: str, **arguments: object) -> dict[str, Any]:
    """Send one request to a running server; its answer. Raises Unavailable (nobody there), InvalidPlan (refused)."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ASK_TIMEOUT_S)
            sock.connect(str(path))
            sock.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline()
        answer = json.loads(line)
    except (OSError, ValueError) as failed:
        raise Unavailable(
            f"the streaming server at {path} does not answer: {failed}",
            action="look whether it runs; it may be started again at any time and goes on where it was",
            cause=failed,
        ) from failed
    if not answer.pop("ok", False):
        raise InvalidPlan(f"the streaming server refused {verb}: {answer.get('error')}")
    return dict(answer)
