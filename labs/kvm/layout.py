"""Where everything of one lab lies: files under its root, sockets under a short runtime directory.

::

    <root>/clouds/<cloud>/{etc,run,lib,cache,log}   bound over libvirt's own directories inside the cloud
    <root>/clouds/<cloud>/{pool,small}              storage pools "default" and "small"
    <root>/shared                                   storage pool "shared" of every cloud: one storage of all
    <root>/tls/{server,client,libvirt}              certificates of the lab's own authority
    <root>/guests/<guest>/console.log               serial console, appended to by every boot on every cloud
    /run/whimbrel-lab/<hash of root>/...            sockets: a unix socket path must stay under 108 characters
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME_BASE = Path("/run/whimbrel-lab")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,15}")
GUEST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


def default_root() -> Path:
    """Return ``$WHIMBREL_LAB_ROOT`` or ``.state/lab-kvm`` in the repository."""
    return Path(os.environ.get("WHIMBREL_LAB_ROOT") or REPOSITORY / ".state" / "lab-kvm").resolve()


def cache_dir() -> Path:
    """Return the directory of things that outlive a lab: the initramfs and QEMU's probed capabilities."""
    return Path(os.environ.get("WHIMBREL_LAB_CACHE") or REPOSITORY / ".state" / "lab-cache").resolve()


@dataclass(frozen=True)
class CloudLayout:
    """Paths of one cloud."""

    name: str
    root: Path
    runtime: Path
    bridge: str
    drill_bridge: str

    @property
    def etc(self) -> Path:
        """Seen as /etc/libvirt by this cloud's daemon."""
        return self.root / "etc"

    @property
    def run(self) -> Path:
        """Seen as /run/libvirt; its inode also tells which processes belong to this cloud."""
        return self.root / "run"

    @property
    def binds(self) -> tuple[tuple[Path, Path], ...]:
        """Pairs (directory of this cloud, libvirt's directory it is bound over)."""
        return (
            (self.run, Path("/run/libvirt")),
            (self.root / "lib", Path("/var/lib/libvirt")),
            (self.root / "cache", Path("/var/cache/libvirt")),
            (self.etc, Path("/etc/libvirt")),
            (self.root / "log", Path("/var/log/libvirt")),
        )

    @property
    def account_tables(self) -> tuple[tuple[Path, Path], ...]:
        """Pairs (file of this cloud, table of accounts it is bound over)."""
        return (self.root / "passwd", Path("/etc/passwd")), (self.root / "group", Path("/etc/group"))

    @property
    def pool(self) -> Path:
        """Directory of the storage pool "default"."""
        return self.root / "pool"

    @property
    def small(self) -> Path:
        """Mount point of the size-limited tmpfs behind the pool "small"."""
        return self.root / "small"

    @property
    def capabilities(self) -> Path:
        """Where libvirt caches what it probed about QEMU."""
        return self.root / "cache" / "qemu" / "capabilities"

    @property
    def daemon_config(self) -> Path:
        """The daemon's own configuration file."""
        return self.root / "libvirtd.conf"

    @property
    def pidfile(self) -> Path:
        """Written by the daemon itself."""
        return self.root / "libvirtd.pid"

    @property
    def log(self) -> Path:
        """The daemon's log; also its stdout and stderr."""
        return self.root / "libvirtd.log"

    @property
    def socket(self) -> Path:
        """The daemon's read-write socket."""
        return self.runtime / "libvirt-sock"

    @property
    def uri(self) -> str:
        """Connection URI, usable from any process of this machine."""
        return f"qemu+unix:///system?socket={self.socket}"


@dataclass(frozen=True)
class LabLayout:
    """Paths of one lab."""

    root: Path

    @property
    def key(self) -> str:
        """Eight hex digits that tell this lab's sockets and bridges from those of other labs."""
        return hashlib.sha256(str(self.root).encode()).hexdigest()[:8]

    @property
    def runtime(self) -> Path:
        """Directory of sockets."""
        return RUNTIME_BASE / self.key

    @property
    def tls(self) -> Path:
        """Directory of certificates."""
        return self.root / "tls"

    @property
    def shared(self) -> Path:
        """Directory of the pool "shared", which every cloud of the lab has: one storage of all."""
        return self.root / "shared"

    @property
    def lock(self) -> Path:
        """Held while the lab is brought up or down."""
        return self.runtime / "lock"

    def cloud(self, name: str) -> CloudLayout:
        """Return the paths of cloud ``name``. Raises LabError for a name that is not ``[a-z0-9-]{1,16}``."""
        if not NAME.fullmatch(name):
            raise LabError(f"cloud name {name!r}: 1 to 16 of a-z, 0-9, -")
        bridge = f"wb{self.key[:6]}{hashlib.sha256(name.encode()).hexdigest()[:4]}"  # IFNAMSIZ allows 15
        drill = f"wd{bridge[2:]}"
        return CloudLayout(name, self.root / "clouds" / name, self.runtime / name, bridge, drill)

    def clouds(self) -> list[str]:
        """Return the names of clouds that exist on disk."""
        base = self.root / "clouds"
        return sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.is_dir() else []

    def guest_dir(self, guest: str) -> Path:
        """Return the directory of a guest's console log."""
        if not GUEST_NAME.fullmatch(guest):
            raise LabError(f"guest name {guest!r}: 1 to 48 letters, digits, . _ -")
        return self.root / "guests" / guest

    def guest_socket(self, guest: str) -> Path:
        """Return the socket of a guest's command channel; named by hash because guest names may be long."""
        return self.runtime / "g" / (hashlib.sha256(guest.encode()).hexdigest()[:12] + ".sock")
