"""The worker makes the cloud from whimbrel.yaml, and without a way to its storage nothing can be moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.openstack import OpenStackCloud
from whimbrel.config.clouds import load_text
from whimbrel.dataplane import open_device
from whimbrel.errors import InvalidPlan, NotFound, Unsupported
from whimbrel.model.endpoint import RbdEndpoint
from whimbrel.model.vm import Power, VmSpec
from worker import ConfiguredClouds, open_images

TEXT = """
version: 1
clouds:
  north:
    kind: openstack
    clouds_yaml_name: nowhere
    clouds_yaml: clouds.yaml
"""


def test_a_configured_cloud_is_made_and_connects_when_first_used(tmp_path: Path) -> None:
    (tmp_path / "clouds.yaml").write_text("clouds: {}\n")
    clouds = ConfiguredClouds(load_text(TEXT, "whimbrel.yaml", tmp_path))
    cloud = clouds.get("north")
    assert isinstance(cloud, OpenStackCloud)
    with pytest.raises(InvalidPlan, match="nowhere"):
        cloud.capabilities()
    clouds.close()


def test_roles_that_it_has_not_are_unsupported() -> None:
    cloud = OpenStackCloud("north", clouds_yaml_name="nowhere")
    vm = VmSpec(ref="1", name="web", power=Power.OFF, vcpus=1, memory_bytes=1)
    assert cloud.handover is not None
    assert list(cloud.serving.served_disks("1")) == list(cloud.shadows.owned(vm, "0123456789")) == []
    for act in (
        lambda: cloud.shadows.open("key", vm, ["vda"], migration="0123456789"),
        lambda: cloud.serving.switch_disks("1", [], migration="0123456789"),
        lambda: cloud.volumes.freeze_writer("key", "point", migration="0123456789"),
        lambda: cloud.compute.start("1", paused=True),
    ):
        with pytest.raises(Unsupported):
            act()


def test_the_worker_opens_images_by_the_paths_of_this_machine() -> None:
    open_images()
    with pytest.raises(NotFound, match=r"/nonexistent/ceph\.conf"):
        open_device(RbdEndpoint(pool="p", image="i", conf="/nonexistent/ceph.conf"))
