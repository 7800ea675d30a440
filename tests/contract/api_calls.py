"""Every single call of a driver to its cloud, one at a time: counted, and the worker killed before or after one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drivers.openstack import OpenStackCloud
from drivers.openstack.connection import Connection

LOOKS = {"GET", "HEAD", "os-getConsoleOutput"}
CHANGES = {"rename", "mark", "unmark", "write_note", "remove_note"}


class Killed(BaseException):
    """The worker is gone: nothing of the attempt happens any more."""


class Calls:
    """Counts calls that change something, and dies at one of them.

    ``at`` counts from 1; ``after``: the cloud has done it, and nobody lives to hear it.
    """

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.seen: list[str] = []

    def around(self, what: str, call: Callable[[], Any]) -> Any:
        """Make the call, or die at it."""
        self.seen.append(what)
        here = len(self.seen) == self.at
        if here and not self.after:
            raise Killed(what)
        result = call()
        if here:
            raise Killed(what)
        return result

    @contextmanager
    def watching(self, *clouds: OpenStackCloud) -> Iterator[Calls]:
        """Inside the ``with`` all requests of these clouds that change something pass here."""
        undo: list[Callable[[], None]] = []
        for cloud in clouds:
            undo += [self._http(cloud.name, cloud._connection), *self._storage(cloud)]
            if cloud._admin is not None:
                undo.append(self._http(f"{cloud.name} as admin", cloud._admin))
        try:
            yield self
        finally:
            for back in undo:
                back()

    def _http(self, name: str, connection: Connection) -> Callable[[], None]:
        session = connection._get().session
        ask = session.request

        def request(url: str, method: str, **how: Any) -> Any:
            if method in LOOKS or url.rstrip("/").endswith("/tokens") or _action(how) in LOOKS:
                return ask(url, method, **how)
            what = f"{name} {method} {url.partition('?')[0].rpartition('/v')[2]} {_action(how)}"
            return self.around(what, lambda: ask(url, method, **how))

        session.request = request
        return lambda: setattr(session, "request", ask)

    def _storage(self, cloud: OpenStackCloud) -> Iterator[Callable[[], None]]:
        images = cloud._backing.images.shared
        for name in CHANGES:
            act = getattr(images, name)

            def call(*args: Any, act: Any = act, name: str = name, **how: Any) -> Any:
                return self.around(
                    f"{cloud.name} {name} {' '.join(map(str, args[1:3]))[:70]}", lambda: act(*args, **how)
                )

            setattr(images, name, call)
            yield lambda name=name: delattr(images, name)  # type: ignore[misc]


def _action(how: dict[str, Any]) -> str:
    body = how.get("json")
    return " ".join(body) if isinstance(body, dict) else ""
