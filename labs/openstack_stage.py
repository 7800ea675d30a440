"""A whole installation with OpenStack clouds beside the KVM ones: Temporal dev server, worker processes, both labs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from labs.kvm import KvmLab
from labs.kvm.accel import virt_type
from labs.openstack import OpenStackLab, ceph
from labs.openstack.processes import pid_of
from labs.ports import lend_port
from labs.stage import CLOUD_NAMES, Stage
from whimbrel.runtime.devserver import DevServer

ACCOUNTS = {"": "-member", "-admin": "-tenant-admin", "-mover": "-member", "-pair": "-member"}
"""End of a cloud's name in plans -> end of its entry in the lab's clouds.yaml; a pair has the admin's beside it."""
ELSEWHERE = "elsewhere"
"""Ceph user of workers that reach the shared pool only: bytes of all others go through mover servers."""


def name_in_plans(cloud: str, *, admin: bool = False, mover: bool = False, pair: bool = False) -> str:
    """What plans call a cloud: ``os-a`` as the tenant's member, ``os-a-admin`` as an admin in its project.

    ``os-a-mover`` is the member again, whose worker has no key to the cloud's own pool; ``os-a-pair`` the member with
    an entry of the admin's own project for what only an admin may.
    """
    return f"os-{cloud}{'-mover' if mover else '-admin' if admin else '-pair' if pair else ''}"


def key_elsewhere(lab: OpenStackLab) -> Path:
    """The ceph.conf of that Ceph user."""
    return ceph.ensure_key(lab.layout, ELSEWHERE, [ceph.SHARED_POOL], lab.layout.root / ELSEWHERE)


class NoKvm:
    """In place of the KVM lab where it is not needed."""

    def up(self, clouds: tuple[str, ...]) -> None:
        """Nothing to bring up."""

    def down(self) -> None:
        """Nothing to take down."""

    def start_libvirtd(self, cloud: str) -> None:
        """Nothing to start."""


@dataclass
class OpenStackStage(Stage):
    """The installation; its OpenStack lab is up already and stays up."""

    openstack: OpenStackLab = field(kw_only=True)

    @classmethod
    def on(cls, directory: Path, openstack: OpenStackLab, kvm: KvmLab | None) -> OpenStackStage:
        """A stage under ``directory``; without ``kvm`` it has the OpenStack clouds alone."""
        directory.mkdir(parents=True, exist_ok=True)
        server = DevServer(directory / "temporal", lend_port(), lend_port())
        return cls(directory=directory, lab=kvm or cast(KvmLab, NoKvm()), server=server, openstack=openstack)

    @property
    def consoles(self) -> Path:
        """Where the KVM clouds log the consoles of VMs that come from elsewhere."""
        return self.directory / "consoles"

    def clouds(self) -> dict[str, dict[str, Any]]:
        """All of both labs."""
        self.consoles.mkdir(exist_ok=True)
        entries = {} if isinstance(self.lab, NoKvm) else super().clouds()
        for name in CLOUD_NAMES.values() if entries else ():
            # the guest's own way of running, which the lab has tried out on this machine
            entries[name] |= {"console_dir": str(self.consoles), "virt_type": virt_type()}
        for cloud in self.openstack.names:
            handle = self.openstack.cloud(cloud)
            for ending, account in ACCOUNTS.items():
                entries[f"os-{cloud}{ending}"] = {
                    "kind": "openstack",
                    "clouds_yaml_name": cloud + account,
                    **({"admin_clouds_yaml_name": cloud} if ending == "-pair" else {}),
                    "clouds_yaml": str(self.openstack.clouds_yaml),
                    "ceph": {
                        "conf": str(handle.ceph_conf),
                        "user": handle.ceph_user,
                        "pools": {handle.volume_type: handle.pool, handle.shared_type: handle.shared_pool},
                    },
                    "gateway_address": self.openstack.host_address,
                }
            entries[name_in_plans(cloud, mover=True)] |= {
                "ceph": {
                    "conf": str(key_elsewhere(self.openstack)),
                    "user": ELSEWHERE,
                    "pools": {handle.shared_type: handle.shared_pool},
                },
                "mover": {
                    "image": handle.mover_image,
                    "flavor": handle.mover_flavor,
                    "network": handle.network,
                    "tls_dir": str(handle.mover_tls),
                },
            }
        return entries

    def heal(self) -> None:
        """Start daemons of both labs that do not run."""
        super().heal()
        for daemon in self.openstack.daemons():
            if pid_of(self.openstack.layout, daemon.name) is None:
                self.openstack.start(daemon.name)
