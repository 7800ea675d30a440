"""One libvirt connection per cloud: opened when first used, watched, and opened again when it has died."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import libvirt

from drivers.libvirt.errors import is_dead_connection, kind_of, translate
from drivers.libvirt.qmp import QmpError
from whimbrel.errors import Unavailable

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 2
"""A peer that is silent for interval * (count + 1) = 15 s is taken for dead, and calls on it fail."""
OPEN_TIMEOUT_S = 15.0

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            continue


def ensure_event_loop() -> None:
    """Start the thread that libvirt's keepalive needs, once per process and before the first connection."""
    global _loop  # noqa: PLW0603 - libvirt's event loop is one per process
    with _loop_lock:
        if _loop is not None:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        # The loop sleeps in poll(2) until something happens: a timer keeps it turning for connections made later.
        libvirt.virEventAddTimeout(1000, lambda *_: None, None)
        _loop = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
        _loop.start()


class Connection:
    """A connection to one libvirt daemon, shared by all threads: ``with connection.using("starting vm1") as conn``."""

    def __init__(
        self,
        uri: str,
        *,
        username: str | None = None,
        credential: Callable[[], str] | None = None,
        read_only: bool = False,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        self.uri = uri
        self.read_only = read_only
        self._username = username
        self._credential = credential
        self._open_timeout_s = open_timeout_s
        self._lock = threading.Lock()
        self._conn: Any = None

    @property
    def host(self) -> str | None:
        """Host part of the URI; None for a local daemon."""
        return urlsplit(self.uri).hostname

    @contextmanager
    def using(self, doing: str, **evidence: str) -> Iterator[Any]:
        """The live ``virConnect``; what libvirt raises inside is raised as an error of the taxonomy.

        A connection that turns out dead is given up, so that the next use opens a new one; the act itself is not
        repeated here, because its outcome is unknown. Raises Unavailable, AuthFailed, PermissionDenied and what
        the act may raise.
        """
        conn = self._alive()
        try:
            yield conn
        except libvirt.libvirtError as error:
            if is_dead_connection(error):
                self._drop(conn)
            raise translate(error, doing, **evidence) from error
        except QmpError as error:
            raise kind_of(-1, error.message)(f"{doing} failed: {error}", cause=error, **evidence) from error

    def close(self) -> None:
        """Give the connection up; the next use opens a new one. Never raises."""
        with self._lock:
            conn, self._conn = self._conn, None
        _close_quietly(conn)

    def _drop(self, conn: Any) -> None:
        with self._lock:
            if self._conn is conn:
                self._conn = None
        _close_quietly(conn)

    def _alive(self) -> Any:
        with self._lock:
            if self._conn is not None:
                if _is_alive(self._conn):
                    return self._conn
                _close_quietly(self._conn)
                self._conn = None
            self._conn = self._open_in_time()
            return self._conn

    def _open_in_time(self) -> Any:
        """Open, or give up: a host that drops packets would hold connect(2) for minutes."""
        done = threading.Event()
        abandoned = threading.Event()
        outcome: list[Any] = []

        def attempt() -> None:
            try:
                outcome.append(self._open())
            except Exception as error:  # noqa: BLE001 - handed to the waiting thread
                outcome.append(error)
            done.set()
            if abandoned.is_set() and not isinstance(outcome[0], Exception):
                _close_quietly(outcome[0])

        threading.Thread(target=attempt, name="libvirt-open", daemon=True).start()
        if not done.wait(self._open_timeout_s):
            abandoned.set()
            raise Unavailable(f"libvirt did not answer within {self._open_timeout_s:g} s", uri=_without_user(self.uri))
        result = outcome[0]
        if isinstance(result, libvirt.libvirtError):
            raise translate(result, "connecting to libvirt", uri=_without_user(self.uri)) from result
        if isinstance(result, Exception):
            raise result
        return result

    def _open(self) -> Any:
        ensure_event_loop()
        flags = libvirt.VIR_CONNECT_RO if self.read_only else 0
        kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE]
        conn = libvirt.openAuth(self.uri, [kinds, self._answer, None], flags)
        try:
            conn.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError:
            # Drivers inside this process (test:, embedded QEMU) have no peer to watch.
            return conn
        return conn

    def _answer(self, asked: list[list[Any]], _: object) -> int:
        """libvirt's authentication callback: each item's last field takes the answer; -1 refuses."""
        for item in asked:
            if item[0] == libvirt.VIR_CRED_AUTHNAME and self._username is not None:
                item[4] = self._username
            elif item[0] == libvirt.VIR_CRED_PASSPHRASE and self._credential is not None:
                item[4] = self._credential()
            else:
                return -1
        return 0


def _is_alive(conn: Any) -> bool:
    try:
        return bool(conn.isAlive() == 1)
    except libvirt.libvirtError:
        return False


def _close_quietly(conn: Any) -> None:
    if conn is not None:
        with suppress(libvirt.libvirtError):
            conn.close()


def _without_user(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)
