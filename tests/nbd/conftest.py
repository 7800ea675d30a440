"""Fixtures of the NBD client's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nbd.scripted_server import Offer, Script, ScriptedServer, Session, silence
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import NbdDevice, NbdLane, open_nbd

Serve = Callable[..., NbdEndpoint]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name in 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="wnbd"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serve(short_dir: Path) -> Iterator[Serve]:
    """Start a scripted server; ``serve(*scripts, offer=, first=, writable=, dirty=, export=)`` -> its endpoint."""
    servers: list[ScriptedServer] = []

    def start(
        *scripts: Script,
        offer: Offer | None = None,
        first: Script = Session.negotiate,
        writable: bool = True,
        dirty: tuple[str, ...] = (),
        export: str = "",
    ) -> NbdEndpoint:
        path = short_dir / f"s{len(servers)}"
        servers.append(ScriptedServer(path, offer or Offer(), list(scripts) or [silence], first))
        return NbdEndpoint(unix_path=str(path), writable=writable, dirty_contexts=dirty, export=export)

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def scripted_lane(serve: Serve) -> Iterator[Callable[..., NbdLane]]:
    """A lane to a server that runs ``script``; the device's own connection is met with silence.

    Replies are structured if the server offers it, other than by default, for those can be wrong in more ways.
    """
    devices: list[NbdDevice] = []

    def start(script: Script, *, offer: Offer | None = None, timeout_s: float = 20.0) -> NbdLane:
        device = open_nbd(serve(silence, script, offer=offer), timeout_s=timeout_s, structured_lanes=True)
        devices.append(device)
        return device.lane()

    yield start
    for device in devices:
        device.close()
