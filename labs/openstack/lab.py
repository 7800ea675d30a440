"""The lab as one object: OpenStack clouds up and down, their state, faults on demand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from openstack.exceptions import SDKException

from labs.kvm.errors import LabError
from labs.kvm.tls import ensure_certificates
from labs.openstack import (
    ceph,
    cinder,
    clouds_yaml,
    furnish,
    glance,
    guest_image,
    keystone,
    libvirtd,
    mariadb,
    namespace,
    neutron,
    nova,
    ovs,
    packages,
    placement,
    processes,
    rabbit,
    schema,
)
from labs.openstack.handle import CloudHandle
from labs.openstack.layout import CLOUDS, CloudLayout, OpenStackLayout, default_root
from labs.openstack.processes import Daemon

SERVICES = (keystone, placement, glance, cinder, nova, neutron)
NEEDS_ROOT = "the lab needs root: namespaces, a switch, libvirtd. Run it as root, or in a container as root"
READY_TIMEOUT_S = 180
ADDRESS_FREE_S = 15


@dataclass(frozen=True)
class ServiceStatus:
    """One daemon right now."""

    name: str
    pid: int | None
    healthy: bool
    log: str
    memory_mib: int
    """Proportional share, with its workers and helpers."""


def _quiet(_message: str) -> None:
    return


class OpenStackLab:
    """One or two OpenStack clouds under one root. Every method may be called again, also from another process."""

    def __init__(
        self,
        root: Path | str | None = None,
        clouds: Sequence[str] = CLOUDS,
        say: Callable[[str], None] = _quiet,
    ) -> None:
        where = Path(root).resolve() if root is not None else default_root()
        self.layout = OpenStackLayout(where, namespace.index_of(where))
        self.names = tuple(clouds)
        self._clouds = [self.layout.cloud(name) for name in self.names]
        self._begin = time.monotonic()
        self._told = say

    # --- the whole lab ---------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring the clouds up and furnish them; returns when every service has reported itself up.

        Data of an earlier run is kept. Raises LabError naming the log of the service that failed.
        """
        if os.geteuid() != 0:
            raise LabError(NEEDS_ROOT)
        self._begin = time.monotonic()
        packages.check_system()
        packages.ensure_venv(self._say)
        with self._locked():
            self._prepare()
            for cloud in self._clouds:
                for service in SERVICES:
                    service.write_config(cloud)
            self._start_infrastructure()
            self._start_services()
            self._furnish()
            clouds_yaml.write(self.clouds_yaml, self._clouds)
        self._say("up")

    def up_ceph(self) -> None:
        """Bring up Ceph alone, with its pools and keys; 10 s and 0.7 GB. ``up`` adds the rest. Raises LabError."""
        if os.geteuid() != 0:
            raise LabError(NEEDS_ROOT)
        self._begin = time.monotonic()
        packages.check_system()
        with self._locked():
            self._prepare()
            self._step("ceph", ceph.ensure_cluster, self.layout)

    def _prepare(self) -> None:
        for directory in (self.layout.logs, self.layout.runtime / "pid"):
            directory.mkdir(parents=True, exist_ok=True)
        (self.layout.runtime / "openstack-root").write_text(str(self.layout.root))
        namespace.ensure(self.layout)
        namespace.keep_index(self.layout)

    def down(self, *, keep_data: bool = False) -> None:
        """End every process of the lab, remove its namespace and its files; with ``keep_data`` the files stay."""
        if not self.layout.runtime.exists() and not Path("/run/netns", self.layout.namespace).exists():
            if not keep_data:
                shutil.rmtree(self.layout.root, ignore_errors=True)
            return
        with self._locked():
            self._end_daemons()
            left = processes.end(self.layout, processes.processes_of(self.layout))
            if left:
                raise LabError(f"processes of the lab could not be ended: {left}")
            namespace.remove(self.layout)
            if not keep_data:
                shutil.rmtree(self.layout.root, ignore_errors=True)
        shutil.rmtree(self.layout.runtime, ignore_errors=True)

    def _end_daemons(self) -> None:
        # guests first, while Ceph still takes their writes; the database last
        shared = self._shared_daemons()
        mine = [daemon for cloud in map(self.layout.cloud, CLOUDS) for daemon in self._daemons(cloud)]
        keep = {pid for daemon in shared for pid in self._session(daemon)}
        others = [pid for pid in processes.processes_of(self.layout) if pid not in keep]
        grace_s = max(daemon.grace_s for daemon in mine)
        self._expect_gone(processes.end(self.layout, others, grace_s=grace_s))
        for daemon in reversed(shared):
            pid = processes.pid_of(self.layout, daemon.name)
            if pid is not None:
                self._expect_gone(processes.end(self.layout, [pid], daemon.stop_signal, daemon.grace_s))

    @staticmethod
    def _expect_gone(left: list[int]) -> None:
        if left:
            raise LabError(f"processes of the lab could not be ended: {left}")

    def status(self) -> list[ServiceStatus]:
        """Return the state of every daemon of the lab, asked now."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._status, self.daemons()))

    def _status(self, daemon: Daemon) -> ServiceStatus:
        pid = processes.pid_of(self.layout, daemon.name)
        healthy = False
        if pid is not None:
            with contextlib.suppress(OSError, LabError, ValueError, KeyError):
                healthy = daemon.healthy()
        log = processes.log_of(self.layout, daemon.name)
        memory = sum(map(processes.memory_mib, self._session(daemon)))
        return ServiceStatus(daemon.name, pid, healthy, str(log), memory)

    def not_ready(self, name: str) -> list[str]:
        """Return the services of cloud ``name`` that the cloud itself does not report as up; empty when all are."""
        with contextlib.closing(keystone.connect(self.layout.cloud(name))) as connection:
            return cinder.missing(connection) + nova.missing(connection) + neutron.missing(connection)

    @staticmethod
    def wait_until(what: str, true: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until ``true`` holds. Raises LabError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise LabError(f"not within {timeout_s:g} s: {what}")
            time.sleep(0.3)

    # --- what is in it ---------------------------------------------------------------------------------------------

    @property
    def clouds_yaml(self) -> Path:
        """Entries ``a``, ``a-tenant-admin``, ``a-member`` and the same for ``b``."""
        return self.layout.root / "clouds.yaml"

    def cloud(self, name: str) -> CloudHandle:
        """Return what tests need to know of cloud ``name``."""
        return CloudHandle(self.layout.cloud(name), self.clouds_yaml)

    @property
    def host_address(self) -> str:
        """This machine as hypervisors see it: bind a gateway here that QEMU in the lab must reach."""
        return self.layout.host_address

    # --- faults ----------------------------------------------------------------------------------------------------

    def daemons(self) -> list[Daemon]:
        """Return every daemon, by order of start."""
        return [*self._shared_daemons(), *(daemon for cloud in self._clouds for daemon in self._daemons(cloud))]

    def stop(self, service: str) -> None:
        """End one service politely with its helpers, for example ``a-cinder-volume``. Not running is fine."""
        daemon = self._daemon(service)
        self._expect_gone(processes.end(self.layout, self._session(daemon), daemon.stop_signal, daemon.grace_s))

    def kill(self, service: str) -> int:
        """Kill one service with SIGKILL, helpers and all; guests stay. Returns the dead pid; LabError if it is off."""
        daemon = self._daemon(service)
        pid = processes.pid_of(self.layout, daemon.name)
        if pid is None:
            raise LabError(f"{service} does not run")
        self._expect_gone(processes.end(self.layout, self._session(daemon), signal.SIGKILL, 10))
        return pid

    def start(self, service: str) -> None:
        """Start one service unless it runs, and wait until it is well."""
        daemon = self._daemon(service)
        processes.start(self.layout, daemon)
        processes.wait_healthy(self.layout, daemon)

    def restart(self, service: str) -> None:
        """Stop and start one service; its address may be in use for a moment longer than its processes live."""
        self.stop(service)
        deadline = time.monotonic() + ADDRESS_FREE_S
        while True:
            try:
                self.start(service)
                return
            except LabError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _daemon(self, service: str) -> Daemon:
        known = {daemon.name: daemon for daemon in self.daemons()}
        if service not in known:
            raise LabError(f"no service {service!r}; there are {', '.join(known)}")
        return known[service]

    def _session(self, daemon: Daemon) -> list[int]:
        pid = processes.pid_of(self.layout, daemon.name)
        return [] if pid is None else processes.session_of(self.layout, pid)

    # --- inner -----------------------------------------------------------------------------------------------------

    def _shared_daemons(self) -> list[Daemon]:
        layout = self.layout
        return [mariadb.daemon(layout), *ceph.daemons(layout), rabbit.daemon(layout), *ovs.daemons(layout)]

    @staticmethod
    def _daemons(cloud: CloudLayout) -> list[Daemon]:
        return [libvirtd.daemon(cloud), *(daemon for service in SERVICES for daemon in service.daemons(cloud))]

    def _start_infrastructure(self) -> None:
        # the databases take the processor, the rest mostly waits: side by side
        with ThreadPoolExecutor(5) as pool:
            jobs = [
                pool.submit(self._databases),
                pool.submit(self._step, "rabbitmq", rabbit.start, self.layout),
                pool.submit(self._step, "ceph", ceph.ensure_cluster, self.layout),
                pool.submit(self._step, "open vswitch", ovs.start, self.layout),
                *(pool.submit(self._step, f"{one.name} libvirtd", libvirtd.start, one) for one in self._clouds),
            ]
            for job in jobs:
                job.result()
        for cloud in self._clouds:
            libvirtd.ensure_secret(cloud)

    def _databases(self) -> None:
        self._step("mariadb", mariadb.start, self.layout)
        for cloud in self._clouds:
            self._step(f"{cloud.name} databases", schema.ensure, cloud)
            self._step(f"{cloud.name} keystone", self._keystone, cloud)

    def _keystone(self, cloud: CloudLayout) -> None:
        done = cloud.root / "identities-made"
        if not done.exists():
            keystone.bootstrap(cloud)
        daemon = keystone.daemons(cloud)[0]
        processes.start(self.layout, daemon)
        processes.wait_healthy(self.layout, daemon)
        if not done.exists():
            keystone.ensure_catalogue(cloud)
            done.touch()

    def _start_services(self) -> None:
        for cloud in self._clouds:
            for daemon in self._daemons(cloud):
                processes.start(self.layout, daemon)
        for cloud in self._clouds:
            for daemon in self._daemons(cloud):
                processes.wait_healthy(self.layout, daemon)
            self._say(f"{cloud.name} APIs answer")

    def _furnish(self) -> None:
        image = guest_image.ensure_image(self.layout.guest_prefix)
        # a switch in user space passes checksums on as they are (docs/labs.md)
        mover = guest_image.ensure_mover("csum=0 gso=0")
        ensure_certificates(self.layout.root / "tls")
        for cloud in self._clouds:
            self._wait_ready(cloud)
            self._step(f"{cloud.name} furnished", self._furnish_one, cloud, image, mover)

    @staticmethod
    def _furnish_one(cloud: CloudLayout, image: Path, mover: Path) -> None:
        with contextlib.closing(keystone.connect(cloud)) as connection:
            furnish.furnish(cloud, connection, image, mover)

    def _wait_ready(self, cloud: CloudLayout) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        failure = "no answer"
        while True:
            try:
                missing = self.not_ready(cloud.name)
                if not missing:
                    self._say(f"{cloud.name} services report themselves up")
                    return
                failure = f"not up: {', '.join(missing)}"
            except SDKException as error:
                failure = str(error)
            if time.monotonic() > deadline:
                where = ", ".join(str(path) for path in sorted(self.layout.logs.glob(f"{cloud.name}-*.log")))
                raise LabError(f"cloud {cloud.name} not ready after {READY_TIMEOUT_S} s: {failure}; logs: {where}")
            time.sleep(0.5)

    def _say(self, message: str) -> None:
        self._told(f"[{time.monotonic() - self._begin:6.1f} s] {message}")

    def _step(self, what: str, call: Callable[..., None], *arguments: object) -> None:
        call(*arguments)
        self._say(what)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.layout.runtime.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise LabError(f"{NEEDS_ROOT} ({error})") from error
        with self.layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
