"""A project of an OpenStack cloud: ``whimbrel.ports.cloud.Cloud``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from drivers.openstack import fit
from drivers.openstack.absent import NoServing, NoShadows
from drivers.openstack.backing import Backing, Images
from drivers.openstack.compute import OpenStackCompute
from drivers.openstack.connection import Connection
from drivers.openstack.facts import capabilities, source_facts, target_facts
from drivers.openstack.fence import Fence
from drivers.openstack.guest import OpenStackGuest
from drivers.openstack.handover import OpenStackHandover
from drivers.openstack.importing import LiveImages
from drivers.openstack.imports import OpenStackImports
from drivers.openstack.mover import MoverSettings
from drivers.openstack.movers import Movers
from drivers.openstack.networks import OpenStackNetworks
from drivers.openstack.pace import MAX_CONCURRENT_CALLS, Pace
from drivers.openstack.points import OpenStackPoints
from drivers.openstack.servers import Servers
from drivers.openstack.serving import OpenStackServing
from drivers.openstack.volumes import OpenStackVolumes
from whimbrel.model.facts import FitFacts, SourceFacts, TargetFacts
from whimbrel.model.vm import Capabilities, VmSpec
from whimbrel.ports.handover import HandoverPort
from whimbrel.ports.imports import ImportPort
from whimbrel.ports.serving import ServingPort


class OpenStackCloud:
    """What one entry of clouds.yaml sees; a second one, an administrator's, does what only such a one may.

    ``images`` and ``pools`` (volume type -> Ceph pool) are the way to the bytes; ``mover`` is it for other types. With
    ``live`` and ``gateway_address`` (of this mover, as compute hosts and Cinder reach it) volumes can be imported while
    a server runs on them.
    """

    def __init__(
        self,
        name: str,
        *,
        clouds_yaml_name: str,
        admin_clouds_yaml_name: str | None = None,
        images: Images | None = None,
        pools: Mapping[str, str] | None = None,
        live: LiveImages | None = None,
        gateway_address: str | None = None,
        config_file: Path | None = None,
        region: str | None = None,
        max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
        calls_per_s: float | None = None,
        mover: MoverSettings | None = None,
    ) -> None:
        self.name = name
        pace = Pace(at_once=max_concurrent_calls, per_s=calls_per_s)
        self._connection = Connection(clouds_yaml_name, config_file=config_file, region=region, pace=pace)
        self._admin = (
            Connection(admin_clouds_yaml_name, config_file=config_file, region=region, pace=pace)
            if admin_clouds_yaml_name is not None
            else None
        )
        movers = Movers(self._connection, mover) if mover is not None else None
        self._backing = Backing(images, pools or {}, movers)
        self._networks = OpenStackNetworks(self._connection)
        self.networks = self._networks
        servers = Servers(self._connection)
        self.compute = OpenStackCompute(
            self._connection, self._backing, self._networks, servers, admin=self._admin, live=live
        )
        self.volumes = OpenStackVolumes(self._connection, self._backing)
        self.points = OpenStackPoints(self._connection, self._backing)
        self.guest = OpenStackGuest(self._connection, servers)
        self.imports: ImportPort | None = None
        self.serving: ServingPort = NoServing()
        if live is not None and gateway_address is not None:
            fence = Fence(self._connection, self._admin)
            imports = OpenStackImports(self._connection, self._backing, live, fence, gateway_address)
            self.imports = imports
            self.serving = OpenStackServing(self._connection, self._backing, live, fence, imports)
        self.shadows = NoShadows()
        self.handover: HandoverPort | None = OpenStackHandover(self._connection, self._backing, self._admin)

    def capabilities(self) -> Capabilities:
        """What can be done here. Raises Unavailable, AuthFailed."""
        return capabilities(self._connection, self._backing, imports=self.imports is not None)

    def source_facts(self, vm: str) -> SourceFacts:
        """All that the prechecks ask about a VM. Raises NotFound, Conflict."""
        return source_facts(self.name, self._connection, self._backing, vm, imports=self.imports is not None)

    def target_facts(self) -> TargetFacts:
        """All that the prechecks ask about this project as a target."""
        return target_facts(
            self.name, self._connection, self._backing, self._networks, imports=self.imports is not None
        )

    def fit(self, vm: VmSpec, size: str | None = None) -> FitFacts:
        """What placement and Neutron say about a VM that is to come here."""
        return fit.read(self._connection, vm, size)

    def one_look(self) -> AbstractContextManager[None]:
        """Inside, what the project has is listed once for all questions of this thread."""
        return self._connection.one_look()

    def close(self) -> None:
        """Give the connections up."""
        self._connection.close()
        if self._admin is not None:
            self._admin.close()
