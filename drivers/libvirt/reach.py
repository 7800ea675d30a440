"""How the mover reaches the NBD servers that QEMU runs on the hypervisor's host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whimbrel.model.endpoint import NbdEndpoint, TlsPaths

Transport = Literal["unix", "tcp", "tls", "stream"]
FIRST_PORT = 10810
PORTS = 1024
PORT_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where one NBD server listens: a socket path, or a host and port."""

    unix_path: str | None = None
    host: str | None = None
    port: int = 0

    @property
    def text(self) -> str:
        """One word that ``parse`` reads back: the socket's path, or ``host port``."""
        return self.unix_path if self.unix_path is not None else f"{self.host} {self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address from its ``text``."""
        if text.startswith("/"):
            return cls(unix_path=text)
        host, _, port = text.rpartition(" ")
        return cls(host=host, port=int(port or 0))


@dataclass(frozen=True, slots=True)
class Reach:
    """``unix`` assumes that the mover runs on the hypervisor's host; ``tcp`` and ``tls`` do not.

    ``stream`` reaches no NBD server: disks of stopped VMs come through libvirt's own connection.

    ``tls_dir`` is the client's directory (where the mover runs), ``server_tls_dir`` the one on the hypervisor's host.
    """

    transport: Transport
    runtime_dir: str
    nbd_host: str
    tls_dir: str | None = None
    server_tls_dir: str = "/etc/pki/qemu"
    salt: str = ""
    """Keeps the addresses of daemons that share a host apart: two of them may serve points of one key."""

    def candidates(self, key: str) -> Iterator[Address]:
        """Addresses to try for the server named ``key``, the same ones in every attempt.

        Neither libvirt 9 nor QEMU 7.2 can pick a port and tell it, so ports are derived and tried in turn.
        """
        digest = hashlib.blake2b(f"{self.salt}\n{key}".encode(), digest_size=8)
        if self.transport == "unix":
            # sun_path holds 108 bytes: keys would not fit under a deep runtime directory, digests do.
            yield Address(unix_path=str(Path(self.runtime_dir) / f"{digest.hexdigest()}.sock"))
            return
        first = int.from_bytes(digest.digest(), "big")
        for step in range(PORT_ATTEMPTS):
            yield Address(host=self.nbd_host, port=FIRST_PORT + (first + step * 7) % PORTS)

    def prepare(self, address: Address) -> None:
        """Make the socket's directory (QEMU may run as another user: it must let that user in)."""
        if address.unix_path is not None:
            Path(address.unix_path).parent.mkdir(parents=True, exist_ok=True, mode=0o755)

    def clean(self, address: Address) -> None:
        """Remove a socket that no server listens on any more; QEMU leaves it behind."""
        if address.unix_path is not None:
            Path(address.unix_path).unlink(missing_ok=True)

    def endpoint(
        self, address: Address, export: str, *, writable: bool = False, dirty_contexts: tuple[str, ...] = ()
    ) -> NbdEndpoint:
        """What the data plane needs to connect to one export."""
        if address.unix_path is not None:
            return NbdEndpoint(
                unix_path=address.unix_path, export=export, writable=writable, dirty_contexts=dirty_contexts
            )
        tls = None
        if self.transport == "tls" and self.tls_dir is not None:
            tls = TlsPaths(directory=self.tls_dir, server_name=address.host)
        return NbdEndpoint(
            host=address.host,
            port=address.port,
            export=export,
            tls=tls,
            writable=writable,
            dirty_contexts=dirty_contexts,
        )
