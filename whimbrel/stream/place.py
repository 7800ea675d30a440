"""Where a migration's streaming servers keep their files on the mover, and where they are reached."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from whimbrel.errors import InvalidPlan
from whimbrel.stream.chunkmap import sync_directory
from whimbrel.stream.config import StreamConfig

SOCKET_PATH_MAX = 107
"""Longest path that Linux takes for a unix socket, unix(7)."""


@dataclass(frozen=True, slots=True)
class Place:
    """One disk's server: ``<state_dir>/streams/<migration>/<disk>.*``, sockets in ``socket_dir``."""

    state_dir: Path
    socket_dir: Path
    migration: str
    disk: str

    @property
    def directory(self) -> Path:
        """All files of the migration's servers."""
        return self.state_dir / "streams" / self.migration

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / f"{self.disk}.json"

    @property
    def map_stem(self) -> Path:
        """Stem of the chunk map's files."""
        return self.directory / self.disk

    @property
    def trace(self) -> Path:
        """Where the guest's reads are recorded."""
        return self.directory / f"{self.disk}.trace"

    @property
    def journal(self) -> Path:
        """Where acknowledged writes wait for the source."""
        return self.directory / f"{self.disk}.journal"

    @property
    def nbd(self) -> Path:
        """The socket that the VM connects to. Raises InvalidPlan when the path is too long for a socket."""
        return self._socket("nbd")

    @property
    def control(self) -> Path:
        """The control socket. Raises InvalidPlan."""
        return self._socket("ctl")

    @property
    def token(self) -> Path:
        """The secret of the URL, for a stream that is read over HTTP."""
        return self.directory / f"{self.disk}.token"

    @property
    def cache(self) -> Path:
        """What has arrived of a disk that is read over HTTP."""
        return self.directory / f"{self.disk}.cache"

    @property
    def door(self) -> Path:
        """Where the listening socket of HTTP is handed out. Raises InvalidPlan."""
        return self._socket("hold")

    def _socket(self, kind: str) -> Path:
        path = self.socket_dir / f"{self.migration}-{self.disk}.{kind}"
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise InvalidPlan(
                f"the socket {path} would be {len(os.fsencode(path))} bytes long, {SOCKET_PATH_MAX} are possible",
                action="set WHIMBREL_SOCKET_DIR of the worker to a shorter path",
            )
        return path

    def write_config(self, config: StreamConfig) -> None:
        """Write the configuration, whole or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Passable for QEMU's user, and not listable: a socket's name holds the migration's id, which is not guessed.
        self.socket_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        fresh = self.config.with_suffix(".json.new")
        fresh.write_text(json.dumps(config.model_dump(mode="json"), indent=1), encoding="utf-8")
        fresh.rename(self.config)
        sync_directory(self.directory)

    def remove(self) -> None:
        """Remove all files of this disk's server; those that are gone are fine. Traces kept elsewhere stay."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.split(".", 1)[0] == self.disk:
                    if path.is_dir():
                        for inner in path.iterdir():
                            inner.unlink(missing_ok=True)
                        path.rmdir()
                    else:
                        path.unlink(missing_ok=True)
            if not any(self.directory.iterdir()):
                self.directory.rmdir()
        for socket in (self.nbd, self.control, self.door):
            socket.unlink(missing_ok=True)


def governor_file(state_dir: Path) -> Path:
    """What this host's copies and servers share its limit by.

    Hosts that share a ``state_dir`` have one each, for their clocks differ.
    """
    return state_dir / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', gethostname())}.governor"


def traces_of(state_dir: Path, vm: str, disk: str) -> Path:
    """Directory of the recorded reads of a VM's disk; ``vm`` is ``cloud/ref``."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", vm)
    return state_dir / "traces" / safe / disk
