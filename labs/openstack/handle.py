"""What a test needs to know of one cloud of the lab: names, paths, connections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import openstack
from openstack.connection import Connection

from labs.openstack import furnish
from labs.openstack.ceph import SHARED_POOL
from labs.openstack.furnish import Address
from labs.openstack.layout import CloudLayout
from labs.openstack.nova import instances_path


@dataclass(frozen=True)
class CloudHandle:
    """One cloud."""

    layout: CloudLayout
    clouds_yaml: Path

    image = furnish.IMAGE
    flavors = tuple(furnish.FLAVORS)
    network = furnish.NETWORK
    """Provider network, one wire for both clouds."""
    drill_network = furnish.DRILL_NETWORK
    """Isolated network with the same addresses."""
    shared_pool = SHARED_POOL
    shared_type = "shared"
    tenant = furnish.TENANT
    mover_image = furnish.MOVER_IMAGE
    mover_flavor = furnish.MOVER_FLAVOR[0]

    @property
    def name(self) -> str:
        """Also the name of the admin's entry in clouds.yaml; the member's is ``<name>-member``."""
        return self.layout.name

    @property
    def pool(self) -> str:
        """Ceph pool of this cloud alone."""
        return self.layout.pool

    @property
    def volume_type(self) -> str:
        """Volume type of the own pool."""
        return f"rbd-{self.name}"

    @property
    def own_backend(self) -> str:
        """Cinder's host string of the own pool, as manage wants it."""
        return f"rbd-{self.name}@own#rbd-{self.name}"

    @property
    def shared_backend(self) -> str:
        """Cinder's host string of the shared pool."""
        return f"rbd-{self.name}@shared#shared"

    @property
    def ceph_conf(self) -> Path:
        """ceph.conf that names the keyring of ``ceph_user``."""
        return self.layout.ceph_conf

    @property
    def ceph_user(self) -> str:
        """Ceph user without "client.": sees the own pool and the shared one."""
        return self.layout.ceph_user

    @property
    def keyring(self) -> Path:
        """Keyring of ``ceph_user``."""
        return self.ceph_conf.parent / f"ceph.client.{self.ceph_user}.keyring"

    @property
    def mover_tls(self) -> Path:
        """Certificates of a worker that talks to mover servers."""
        return self.layout.lab.root / "tls" / "client"

    @property
    def log_dir(self) -> Path:
        """Logs; this cloud's begin with its name."""
        return self.layout.lab.logs

    @property
    def libvirt_uri(self) -> str:
        """The compute host's libvirtd, to look behind Nova's back."""
        return self.layout.libvirt_uri

    def address(self, number: int) -> Address:
        """Return MAC and IP ``number`` (10 to 99 are free for tests); the guest sets the IP that fits its MAC."""
        return furnish.address(self.layout, number)

    def connect(self, *, member: bool = False) -> Connection:
        """Return a connection of openstacksdk as admin, or as the tenant's member."""
        loader = openstack.config.OpenStackConfig(config_files=[str(self.clouds_yaml)], load_envvars=False)
        return Connection(config=loader.get_one(self.name + ("-member" if member else "")))

    def console_log(self, server_id: str) -> Path:
        """Return the file of a server's whole console; Nova starts it anew at every power on."""
        return Path(instances_path(self.layout)) / server_id / "console.log"
