"""Where the bytes of a disk can be reached: serialisable, without secrets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of every value of the model: frozen, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsPaths(Frozen):
    """x509 files on the machine that connects.

    QEMU's layout: ``ca-cert.pem client-cert.pem client-key.pem`` in ``directory``.
    """

    directory: str
    server_name: str | None = None
    """Name to verify in the server's certificate; the host when None."""
    server_certificate: str | None = None
    """The one certificate (PEM) that the server may show, in place of those that ``ca-cert.pem`` has signed."""


class NbdEndpoint(Frozen):
    """An NBD export over a unix socket or TCP (exactly one of ``unix_path`` and ``host``)."""

    kind: Literal["nbd"] = "nbd"
    unix_path: str | None = None
    host: str | None = None
    port: int = 10809
    export: str = ""
    tls: TlsPaths | None = None
    dirty_contexts: tuple[str, ...] = ()
    """Meta contexts whose bit 0 marks changed blocks; the union of all is the change set. Empty: no tracking."""
    writable: bool = False


class FileEndpoint(Frozen):
    """A raw file or block device on the machine that connects."""

    kind: Literal["file"] = "file"
    path: str
    writable: bool = False


class MemoryEndpoint(Frozen):
    """A disk of the in-memory cloud, by its key; only inside one process, for tests."""

    kind: Literal["memory"] = "memory"
    key: str
    writable: bool = False


class LibvirtVolumeEndpoint(Frozen):
    """A raw volume of a stopped VM, read through the connection of a configured libvirt cloud; read-only."""

    kind: Literal["libvirt-volume"] = "libvirt-volume"
    cloud: str
    """Name of the cloud in whimbrel.yaml; address and credentials are looked up where it is opened."""
    path: str
    """Path of the volume on the cloud's host."""
    vm: str
    """Ref of the VM whose disk it is: it must stay off."""
    point: str
    """Key of the point in time that must be open."""
    writable: Literal[False] = False


class RbdEndpoint(Frozen):
    """An image in a Ceph pool, opened through librbd with the configuration and key of the machine that connects."""

    kind: Literal["rbd"] = "rbd"
    pool: str
    image: str
    snapshot: str | None = None
    """Read the image as it was at this snapshot; never writable."""
    since: str | None = None
    """Earlier snapshot against which the device tells what has changed. None: no tracking."""
    conf: str = "/etc/ceph/ceph.conf"
    """Ceph's configuration on the machine that connects; it names the keyring."""
    user: str = "admin"
    """Ceph user without ``client.``."""
    session: str | None = None
    """Key of the session, or with ``snapshot`` of the point in time, that must be open on the image."""
    writable: bool = False


Endpoint = Annotated[
    NbdEndpoint | FileEndpoint | MemoryEndpoint | LibvirtVolumeEndpoint | RbdEndpoint, Field(discriminator="kind")
]
