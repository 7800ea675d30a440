"""A cloud of the KVM lab as the proofs see it, beside OpenStack ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import libvirt

from labs.kvm import LabGuest
from labs.openstack_stage import OpenStackStage
from labs.stage import CLOUD_NAMES
from tests.e2e.scene import definition
from tests.e2e_openstack.images import flatten


class KvmSite:
    """One cloud."""

    kind = "libvirt"
    network = "lab"
    storage = "default"

    def __init__(self, stage: OpenStackStage, cloud: str) -> None:
        self._stage = stage
        self.cloud = cloud
        self.plan_name = CLOUD_NAMES[cloud]

    def close(self) -> None:
        """Nothing is kept open."""

    def guest(self, name: str) -> LabGuest:
        """The lab's own handle."""
        return self._stage.lab.guest(name)

    def exists(self, guest: str) -> bool:
        """Whether it is defined."""
        return self.guest(guest).is_defined(self.cloud)

    def running(self, guest: str) -> bool:
        """Whether it is on."""
        return self.guest(guest).is_running(self.cloud)

    def command(self, guest: str, text: str) -> str:
        """Ask a guest that was made here, over its second serial port."""
        return self.guest(guest).command(text)

    def shut_down(self, guest: str) -> None:
        """Press the power button."""
        self.guest(guest).shutdown(self.cloud)

    def definition(self, guest: str) -> str:
        """The stored definition, whole."""
        return definition(self._stage, guest, self.cloud)

    def flatten(self, guest: str, into: Path) -> dict[str, Path]:
        """Its disks as flat files in a directory, by disk key."""
        found = {}
        for key, path in self.guest(guest).disk_paths(self.cloud).items():
            form = "qcow2" if path.open("rb").read(4) == b"QFI\xfb" else "raw"
            found[key] = flatten(path, form, into / f"{self.plan_name}-{key}")
        return found

    def consoles(self, names: re.Pattern[str]) -> Mapping[str, Path]:
        """Logs of guests made here, and of VMs that came from elsewhere: ``<cloud>/<name>`` and the path."""
        found = {}
        for log in self._stage.consoles.glob("*-0.log"):
            name = log.name.removesuffix("-0.log")
            if names.fullmatch(name) and self.cloud == "b":
                found[f"{self.plan_name}/{name}"] = log
        for guest in self._stage.lab.guest("x").console_log.parent.parent.glob("*"):
            if names.fullmatch(guest.name) and self.cloud == "a":
                found[f"{self.plan_name}/{guest.name}"] = guest / "console.log"
        return found

    def remove(self, guest: str) -> None:
        """The guest, its volumes and its logs."""
        self.guest(guest).remove(self.cloud)
        for log in self._stage.consoles.glob(f"{guest}-*.log"):
            log.unlink()
        connection = self._stage.lab.connect(self.cloud)
        try:
            for domain in connection.listAllDomains():
                if domain.name().startswith("whimbrel-") and domain.isActive():
                    domain.destroy()
        except libvirt.libvirtError:
            return
        finally:
            connection.close()
