"""A libvirt host as a cloud: ``whimbrel.ports.cloud.Cloud``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

from drivers.libvirt.compute import LibvirtCompute
from drivers.libvirt.connection import Connection
from drivers.libvirt.facts import capabilities, source_facts, target_facts
from drivers.libvirt.guest import LibvirtGuest
from drivers.libvirt.handover import LibvirtHandover
from drivers.libvirt.mover import Mover
from drivers.libvirt.network import LibvirtNetworks
from drivers.libvirt.points import LibvirtPoints
from drivers.libvirt.reach import Reach, Transport
from drivers.libvirt.serving import LibvirtServing
from drivers.libvirt.shadows import LibvirtShadows
from drivers.libvirt.stream_reader import StreamDevice
from drivers.libvirt.volumes import LibvirtVolumes
from whimbrel.model.endpoint import LibvirtVolumeEndpoint
from whimbrel.model.facts import FitFacts, SourceFacts, TargetFacts
from whimbrel.model.vm import Capabilities, VmSpec
from whimbrel.ports.handover import HandoverPort

DEFAULT_RUNTIME_DIR = "/run/whimbrel"


class LibvirtCloud:
    """One libvirt daemon, by any URI that libvirt takes (``qemu:///system``, ``qemu+ssh://...``, ``qemu+tls://...``).

    ``transport`` is the way from the mover to QEMU's NBD servers. ``unix`` assumes that the mover runs on the
    hypervisor's host, with sockets in ``runtime_dir`` (QEMU's user must be able to make files there); ``tcp`` and
    ``tls`` listen on ``nbd_host``, an address of the hypervisor that the mover can reach (the URI's host if not
    given). ``tls`` wants client certificates in ``tls_dir`` on the mover, and server certificates on the host: in
    ``server_tls_dir``, and where ``backup_tls_x509_cert_dir`` of qemu.conf says, usually the same. ``stream`` needs
    libvirt's own connection only, but gives raw disks of stopped VMs and cannot write: a host that is a cold source.
    Hosts that are no QEMU hosts (``xen+ssh://...``) are always read in this way, whatever ``transport`` says.

    ``scratch_dir`` (on the host) takes the old blocks of live points; without it they lie beside the images.
    ``console_dir`` (on the host) takes the serial logs of rebuilt VMs whose source logged to a file; without it
    they log to the path that the source's definition names.
    ``virt_type`` (kvm, qemu) runs VMs that come from something else than KVM; what the host offers when None.
    ``isolated_networks`` have no way out, which libvirt itself cannot tell of bridges of the host: drills run there.
    ``credential`` is asked for the password when the URI's transport wants one; it is never kept.
    """

    def __init__(
        self,
        name: str,
        *,
        uri: str,
        transport: Transport = "unix",
        nbd_host: str | None = None,
        tls_dir: str | None = None,
        server_tls_dir: str = "/etc/pki/qemu",
        runtime_dir: str | None = None,
        scratch_dir: str | None = None,
        console_dir: str | None = None,
        virt_type: str | None = None,
        username: str | None = None,
        credential: Callable[[], str] | None = None,
        read_only: bool = False,
        isolated_networks: Collection[str] = (),
    ) -> None:
        self.name = name
        self._connection = Connection(uri, username=username, credential=credential, read_only=read_only)
        self._reach = reach = Reach(
            transport=transport,
            runtime_dir=runtime_dir or DEFAULT_RUNTIME_DIR,
            nbd_host=nbd_host or self._connection.host or "127.0.0.1",
            tls_dir=tls_dir,
            server_tls_dir=server_tls_dir,
            salt=uri,
        )
        mover = Mover(self._connection, reach)
        self.compute = LibvirtCompute(self._connection, console_dir=console_dir, virt_type=virt_type)
        self.volumes = LibvirtVolumes(self._connection, mover, reach)
        self.points = LibvirtPoints(name, self._connection, mover, reach, scratch_dir=scratch_dir)
        self.handover: HandoverPort | None = LibvirtHandover(self._connection, mover, reach)
        self.networks = LibvirtNetworks(self._connection, isolated=isolated_networks)
        self.guest = LibvirtGuest(self._connection)
        self.imports = None
        self.serving = LibvirtServing(self._connection, mover, reach)
        self.shadows = LibvirtShadows(self._connection, mover, reach)

    def capabilities(self) -> Capabilities:
        """What this host can do. Raises Unavailable, AuthFailed."""
        return capabilities(self._connection, self._reach)

    def source_facts(self, vm: str) -> SourceFacts:
        """All that the prechecks ask about a VM. Raises NotFound, Conflict."""
        return source_facts(self.name, self._connection, self._reach, vm)

    def target_facts(self) -> TargetFacts:
        """All that the prechecks ask about this host as a target."""
        return target_facts(self.name, self._connection, self._reach, self.volumes, self.networks)

    def fit(self, vm: VmSpec, size: str | None = None) -> FitFacts:
        """Nothing to ask: there is one host, and its facts are those of the target."""
        return FitFacts()

    def open_volume(self, endpoint: LibvirtVolumeEndpoint) -> StreamDevice:
        """The volume behind an endpoint of a point that is read through streams. Raises NotFound, Conflict."""
        return StreamDevice(self._connection, endpoint)

    def one_look(self) -> AbstractContextManager[None]:
        """Every question looks for itself."""
        return nullcontext()

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()
