"""An installation whose clouds are the two of the OpenStack lab, for handovers over the pool that both see."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from labs.openstack import OpenStackLab
from labs.stage import Stage
from whimbrel.model.plan import VmPlan
from whimbrel.runtime.devserver import DevServer, free_port

CLOUDS = {"a": "os-a", "b": "os-b"}


class NoKvm:
    """In place of the KVM lab, which is not needed."""

    def up(self, clouds: tuple[str, ...]) -> None:
        """Nothing to bring up."""

    def down(self) -> None:
        """Nothing to take down."""

    def start_libvirtd(self, cloud: str) -> None:
        """Nothing to start."""


class HandoverStage(Stage):
    """The lab is up already and stays up. Accounts are administrators in the tenant's project."""

    openstack: OpenStackLab

    @classmethod
    def on(cls, directory: Path, openstack: OpenStackLab) -> HandoverStage:
        """A stage under ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        server = DevServer(directory / "temporal", free_port(), free_port())
        made = cls(directory=directory, lab=cast(Any, NoKvm()), server=server)
        made.openstack = openstack
        return made

    def write_config(self) -> None:
        """Name both clouds."""
        clouds = {}
        for name, plan_name in CLOUDS.items():
            handle = self.openstack.cloud(name)
            clouds[plan_name] = {
                "kind": "openstack",
                "clouds_yaml_name": f"{name}-tenant-admin",
                "clouds_yaml": str(handle.clouds_yaml),
                "ceph": {
                    "conf": str(handle.ceph_conf),
                    "user": handle.ceph_user,
                    "pools": {handle.volume_type: handle.pool, handle.shared_type: handle.shared_pool},
                },
            }
        state = str(self.directory / "state")
        self.config.write_text(yaml.safe_dump({"version": 1, "state_dir": state, "clouds": clouds}))


def plan_of(vm: str, **changes: Any) -> VmPlan:
    """From a to b, waiting for its operator at the end."""
    base: dict[str, Any] = {
        "plan": "handover",
        "vm": vm,
        "mode": "dual-attach",
        "source": CLOUDS["a"],
        "target": CLOUDS["b"],
        "networks": {"*": "wire"},
        "storage": {"shared": "shared"},
        "stop": {"graceful_timeout_s": 60.0},
        "health": {"checks": [{"kind": "console", "pattern": "WBREC1 kind=run"}], "timeout_s": 180.0},
    }
    return VmPlan.model_validate(base | changes)
