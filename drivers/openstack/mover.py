"""What a mover server is made of and told: ``mover:`` in whimbrel.yaml, user data, and what its console says.

A mover server is a small server of ours that serves volumes by NBD over TLS, for volume types whose storage no worker
reaches. It is made from an image of ours (``whimbrel/moverimage``), which says on its console by which certificate it
is known: it makes its own key, so no secret passes through Nova.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whimbrel.errors import AuthFailed, GuestUnbootable
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths

SERVER_NAME = "whimbrel-mover"
"""In the certificates of all mover servers: which one it is tells the certificate itself."""
SPOKEN = re.compile(r"WHIMBREL-MOVER (\S+) ?(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class MoverSettings:
    """How mover servers are made; names are the cloud's."""

    image: str
    flavor: str
    network: str
    """One that the workers of the site reach."""
    tls_dir: str
    """``ca-cert.pem``, ``client-cert.pem``, ``client-key.pem``: at the same path on every worker of the site."""
    port: int = 10809
    security_group: str | None = None
    availability_zone: str | None = None
    max_disks: int = 16
    """Of one server: more volumes than this are not served in one session."""


@dataclass(frozen=True)
class ServedVolume:
    """One volume of a session."""

    volume: str
    """Its id, and the name of its export."""
    size_bytes: int
    """A volume that is longer is cut to it: Cinder counts in whole GiB."""
    writable: bool


def client_authority(settings: MoverSettings) -> str:
    """The certificate that clients are signed with, PEM. Raises AuthFailed."""
    path = Path(settings.tls_dir) / "ca-cert.pem"
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise AuthFailed(
            f"cannot read {path}: {error}",
            action="put ca-cert.pem, client-cert.pem and client-key.pem where mover.tls_dir in whimbrel.yaml says",
            cause=error,
        ) from error


def user_data(
    settings: MoverSettings, served: Sequence[ServedVolume], *, address: str, cidr: str, gateway: str | None, mtu: int
) -> str:
    """What ``mover-init.sh`` reads, as Nova wants it (base64). Raises AuthFailed."""
    lines = [
        f"name {SERVER_NAME}",
        f"address {address}/{ipaddress.ip_network(cidr).prefixlen}",
        *([f"gateway {gateway}"] if gateway else []),
        f"mtu {mtu}",
        f"port {settings.port}",
        *(f"disk {one.volume} {one.size_bytes} {'write' if one.writable else 'read'}" for one in served),
        *(f"ca {line}" for line in client_authority(settings).splitlines()),
    ]
    return base64.b64encode("".join(f"{line}\n" for line in lines).encode()).decode()


def certificate_on(console: str) -> str | None:
    """The certificate that the server is known by, once it serves. Raises GuestUnbootable with its own words."""
    spoken = SPOKEN.findall(console)
    begins = [place for place, (_, text) in enumerate(spoken) if text.endswith("BEGIN CERTIFICATE-----")]
    last = spoken[begins[-1] if begins else 0 :]
    if any(word == "READY" for word, _ in last):
        return "".join(f"{text}\n" for word, text in last if word == "CERT")
    for word, text in last:
        if word in {"FAILED", "ENDED"}:
            raise GuestUnbootable(
                f"a mover server cannot serve: {text}",
                action="look at its console with `openstack console log show`; is the image of this version?",
            )
    return None


def endpoint(settings: MoverSettings, one: ServedVolume, *, address: str, certificate: str) -> NbdEndpoint:
    """How a worker opens a volume that is served."""
    return NbdEndpoint(
        host=address,
        port=settings.port,
        export=one.volume,
        tls=TlsPaths(directory=settings.tls_dir, server_name=SERVER_NAME, server_certificate=certificate),
        writable=one.writable,
    )
