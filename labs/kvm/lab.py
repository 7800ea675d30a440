"""The lab as one object: clouds up and down, faults on demand, guests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import libvirt

from labs.kvm import cloud as daemon
from labs.kvm import network, processes, storage, tls
from labs.kvm.domain import GuestSpec
from labs.kvm.errors import LabError
from labs.kvm.guest import LabGuest
from labs.kvm.layout import RUNTIME_BASE, CloudLayout, LabLayout, default_root

DEFAULT_CLOUDS = ("a", "b")
NEEDS_ROOT = "the lab needs root: mount namespaces, bridges. Run it as root, or in a container as root"
libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised; stderr is not the place


def labs_on_this_machine() -> list[Path]:
    """Return the roots of all labs that are up, also those that a killed test session left behind."""
    return sorted(Path(marker.read_text()) for marker in RUNTIME_BASE.glob("*/root"))


@dataclass(frozen=True)
class CloudStatus:
    """What is true of one cloud right now."""

    name: str
    uri: str
    healthy: bool
    pid: int | None
    log: str
    guests: dict[str, bool]
    """Guest name -> runs."""


class KvmLab:
    """N clouds under one root directory. Every method may be called again, also from another process."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.layout = LabLayout(Path(root).resolve() if root is not None else default_root())

    # --- the whole lab ---------------------------------------------------------------------------------------------

    def up(self, clouds: Sequence[str] = DEFAULT_CLOUDS) -> None:
        """Bring the named clouds up: daemon, certificates, pools default, small and shared, networks lab and drill.

        Raises LabError when not root, or when a daemon does not become healthy (the message names its log).
        """
        if os.geteuid() != 0:
            raise LabError(NEEDS_ROOT)
        if not Path(daemon.LIBVIRTD).exists():
            raise LabError(f"{daemon.LIBVIRTD} is missing; run deploy/install-system")
        layouts = [self.layout.cloud(name) for name in clouds]
        with self._locked():
            tls.ensure_certificates(self.layout.tls)
            (self.layout.runtime / "g").mkdir(exist_ok=True)
            self.layout.shared.mkdir(exist_ok=True)
            (self.layout.runtime / "root").write_text(str(self.layout.root))
            for one in layouts:
                daemon.write_config(one, self.layout.tls)
                storage.mount_small(one)
                daemon.start(one)
                self._furnish(one)

    def _furnish(self, one: CloudLayout) -> None:
        with self._connection(one) as connection:
            storage.ensure_pool(connection, "default", one.pool)
            storage.ensure_pool(connection, "shared", self.layout.shared)
            for name, bridge in network.networks(one):
                if network.ensure_bridge(bridge):
                    network.ensure_network(connection, name, bridge)

    def down(self, *, keep_data: bool = False) -> None:
        """End every process of the lab's clouds and remove its files; with ``keep_data`` the files stay."""
        with self._locked():
            for one in map(self.layout.cloud, self.layout.clouds()):
                daemon.end_everything(one)
                storage.unmount_small(one)
                for _, bridge in network.networks(one):
                    network.remove_bridge(bridge)
            if not keep_data:
                for part in ("clouds", "shared", "tls", "guests"):
                    shutil.rmtree(self.layout.root / part, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.layout.root.rmdir()
        shutil.rmtree(self.layout.runtime, ignore_errors=True)
        with contextlib.suppress(OSError):
            RUNTIME_BASE.rmdir()

    def status(self) -> list[CloudStatus]:
        """Return the state of every cloud that exists, read from its daemon."""
        return [self._status(self.layout.cloud(name)) for name in self.layout.clouds()]

    def _status(self, one: CloudLayout) -> CloudStatus:
        pid = processes.daemon_pid(one)
        guests: dict[str, bool] = {}
        healthy = False
        if pid is not None:
            with contextlib.suppress(libvirt.libvirtError), self._connection(one) as connection:
                guests = {domain.name(): bool(domain.isActive()) for domain in connection.listAllDomains()}
                healthy = True
        return CloudStatus(one.name, one.uri, healthy, pid, str(one.log), guests)

    def status_json(self) -> list[dict[str, object]]:
        """Return ``status`` as plain data."""
        return [asdict(status) for status in self.status()]

    # --- one cloud -------------------------------------------------------------------------------------------------

    def cloud(self, name: str) -> CloudLayout:
        """Return the paths of cloud ``name``."""
        return self.layout.cloud(name)

    def uri(self, name: str) -> str:
        """Return the libvirt URI of cloud ``name``: ``qemu+unix:///system?socket=...``."""
        return self.cloud(name).uri

    def tls_uri(self, name: str) -> str:
        """Return the cloud's URI over TLS on 127.0.0.1, with the lab's client certificate."""
        port = daemon.tls_port(self.cloud(name))
        return f"qemu+tls://127.0.0.1:{port}/system?pkipath={self.layout.tls / 'libvirt'}"

    def connect(self, name: str) -> libvirt.virConnect:
        """Open a new connection to cloud ``name``; the caller closes it."""
        return daemon.connect(self.cloud(name))

    def pool_path(self, name: str, pool: str = "default") -> Path:
        """Return the directory of the pool "default", "small" or "shared" of cloud ``name``."""
        if pool == "shared":
            return self.layout.shared
        return self.cloud(name).small if pool == "small" else self.cloud(name).pool

    def scratch_dir(self, name: str) -> Path:
        """Return a directory of short paths for sockets that cloud ``name`` and this process both reach."""
        path = self.cloud(name).runtime / "s"
        path.mkdir(exist_ok=True)
        return path

    def nbd_dir(self, name: str) -> Path:
        """Return a directory of short paths for NBD sockets of cloud ``name``; nobody else uses it."""
        path = self.cloud(name).runtime / "n"
        path.mkdir(exist_ok=True)
        return path

    def add_small_pool(self, name: str, size_bytes: int) -> str:
        """Offer a pool that holds at most ``size_bytes`` on cloud ``name``; return the pool's name."""
        one = self.cloud(name)
        storage.resize_small(one, size_bytes)
        with self._connection(one) as connection:
            storage.ensure_pool(connection, "small", one.small)
            connection.storagePoolLookupByName("small").refresh()
        return "small"

    def has_network(self, name: str) -> bool:
        """Tell whether cloud ``name`` has the libvirt network "lab"."""
        return network.bridge_exists(self.cloud(name).bridge)

    @property
    def client_tls_dir(self) -> Path:
        """Directory with ca-cert.pem, client-cert.pem and client-key.pem for NBD over TLS."""
        return self.layout.tls / "client"

    # --- faults ----------------------------------------------------------------------------------------------------

    def kill_libvirtd(self, name: str) -> int:
        """Kill the daemon of cloud ``name`` with SIGKILL; its guests run on. Returns the dead pid."""
        return daemon.kill(self.cloud(name))

    def stop_libvirtd(self, name: str) -> None:
        """End the daemon of cloud ``name`` politely; its guests run on."""
        daemon.stop(self.cloud(name))

    def start_libvirtd(self, name: str) -> None:
        """Start the daemon of cloud ``name`` unless it runs, and wait until it answers."""
        with self._locked():  # two starters would each see no daemon
            daemon.start(self.cloud(name))

    # --- guests ----------------------------------------------------------------------------------------------------

    def guest(self, name: str) -> LabGuest:
        """Return the handle of guest ``name``, wherever it is defined."""
        return LabGuest(self.layout, name)

    def create_guest(self, spec: GuestSpec, cloud: str = "a", *, pool: str = "default") -> LabGuest:
        """Create the guest's disks in a pool of ``cloud`` and define it there; not started."""
        guest = self.guest(spec.name)
        guest.create(spec, cloud, pool=pool)
        return guest

    # --- inner -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connection(self, one: CloudLayout) -> Iterator[libvirt.virConnect]:
        connection = daemon.connect(one)
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.layout.runtime.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise LabError(f"{NEEDS_ROOT} ({error})") from error
        with self.layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
