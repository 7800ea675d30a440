"""Where everything of one OpenStack lab lies, and which addresses it has.

A lab is a small data centre of its own in one network namespace: every process of it listens on the usual ports of
its own addresses, so that labs of several checkouts, and the KVM lab, run side by side. This machine reaches the lab
through one veth pair.

::

    <root>/index                             number of the lab's networks, 1 to 254, kept with the data
    <root>/{ceph,mysql,rabbit,ovs}           data of the daemons both clouds share
    <root>/clouds/<cloud>/etc/<service>      configuration;   <root>/clouds/<cloud>/<service>  its state
    <root>/logs                              one log per daemon
    /run/whimbrel-lab/<hash>/                sockets and pid files: a unix socket path stays under 108 characters

    198.18.<index>.1    this machine        198.18.<index>.2    Ceph, database, message bus
    198.18.<index>.11   APIs of cloud a     198.18.<index>.12   APIs of cloud b
    198.19.<index>.0/24 provider network of the guests, the same wire in both clouds; .1 is its gateway
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.layout import REPOSITORY, RUNTIME_BASE

CLOUDS = ("a", "b")
PORTS = {"keystone": 5000, "placement": 8778, "glance": 9292, "cinder": 8776, "nova": 8774, "neutron": 9696}
PASSWORD = "lab-only"  # of every account in the lab; nothing outside this machine reaches it
MAC_PREFIX = {"a": "fa:16:3e", "b": "fa:16:3f"}


def default_root() -> Path:
    """Return ``$WHIMBREL_OPENSTACK_ROOT`` or ``.state/lab-openstack`` in the repository."""
    return Path(os.environ.get("WHIMBREL_OPENSTACK_ROOT") or REPOSITORY / ".state" / "lab-openstack").resolve()


def venv_dir() -> Path:
    """Return the environment of the clouds' own programs: ``$WHIMBREL_OPENSTACK_VENV`` or ``.state/openstack-venv``."""
    return Path(os.environ.get("WHIMBREL_OPENSTACK_VENV") or REPOSITORY / ".state" / "openstack-venv").resolve()


@dataclass(frozen=True)
class OpenStackLayout:
    """Paths and addresses of one lab."""

    root: Path
    index: int
    """Third octet of its networks."""

    @property
    def key(self) -> str:
        """Eight hex digits that tell this lab's sockets, namespace and devices from those of other labs."""
        return hashlib.sha256(f"openstack:{self.root}".encode()).hexdigest()[:8]

    @property
    def runtime(self) -> Path:
        """Directory of sockets and pid files."""
        return RUNTIME_BASE / self.key

    @property
    def lock(self) -> Path:
        """Held while the lab is brought up or down."""
        return self.runtime / "lock"

    @property
    def logs(self) -> Path:
        """Directory of all logs."""
        return self.root / "logs"

    @property
    def namespace(self) -> str:
        """Name of the network namespace."""
        return f"wbos-{self.key}"

    @property
    def device(self) -> str:
        """This machine's end of the veth pair; IFNAMSIZ allows 15 characters."""
        return f"wbos{self.key}"

    @property
    def host_address(self) -> str:
        """This machine, as the lab sees it: where a gateway of ours listens that hypervisors must reach."""
        return f"198.18.{self.index}.1"

    @property
    def shared_address(self) -> str:
        """Ceph, MariaDB and RabbitMQ."""
        return f"198.18.{self.index}.2"

    @property
    def guest_prefix(self) -> str:
        """First three octets of the provider network."""
        return f"198.19.{self.index}"

    @property
    def mysql_socket(self) -> Path:
        """Root's way into the database."""
        return self.runtime / "mysql"

    @property
    def ovs_run(self) -> Path:
        """Bound over /run/openvswitch for the lab's processes."""
        return self.runtime / "ovs"

    def cloud(self, name: str) -> CloudLayout:
        """Return the paths of cloud ``name``. Raises LabError for a cloud there is not."""
        if name not in CLOUDS:
            raise LabError(f"cloud {name!r}: there are {', '.join(CLOUDS)}")
        return CloudLayout(name, self)


@dataclass(frozen=True)
class CloudLayout:
    """Paths, addresses and names of one cloud."""

    name: str
    lab: OpenStackLayout

    @property
    def root(self) -> Path:
        """Configuration and state."""
        return self.lab.root / "clouds" / self.name

    @property
    def address(self) -> str:
        """Where the cloud's APIs listen."""
        return f"198.18.{self.lab.index}.{11 + CLOUDS.index(self.name)}"

    @property
    def region(self) -> str:
        """Region name."""
        return f"Region{self.name.upper()}"

    @property
    def pool(self) -> str:
        """The Ceph pool that only this cloud sees."""
        return f"volumes-{self.name}"

    @property
    def hostname(self) -> str:
        """Name of the one compute host."""
        return f"compute-{self.name}"

    def url(self, service: str) -> str:
        """Return the root URL of an API."""
        return f"http://{self.address}:{PORTS[service]}"

    def etc(self, service: str) -> Path:
        """Return the configuration directory of a service."""
        return self.root / "etc" / service

    def var(self, service: str) -> Path:
        """Return the state directory of a service."""
        return self.root / service

    def database(self, name: str) -> str:
        """Return the name of a service's database."""
        return f"{self.name}_{name}"

    @property
    def libvirt_run(self) -> Path:
        """Directory of libvirtd's sockets."""
        return self.lab.runtime / self.name

    @property
    def libvirt_uri(self) -> str:
        """URI of the compute host's libvirtd, usable from any process of this machine."""
        return f"qemu+unix:///system?socket={self.libvirt_run / 'libvirt-sock'}"

    @property
    def ceph_conf(self) -> Path:
        """ceph.conf that names the cloud's key."""
        return self.root / "ceph" / "ceph.conf"

    @property
    def ceph_user(self) -> str:
        """The key of Cinder, Nova and, with the operator's leave, Whimbrel: own pool and the shared one."""
        return f"cloud-{self.name}"
