"""Flavors by name and server groups by name, from the SDK's own fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from openstack.compute.v2.flavor import Flavor
from openstack.compute.v2.server_group import ServerGroup
from openstack.test import fakes

from drivers.openstack import flavors, groups
from drivers.openstack.connection import Connection
from whimbrel.errors import Conflict, InvalidPlan, NotFound
from whimbrel.model.vm import Power, VmSpec

MIB = 1 << 20
KNOWN = [
    fakes.generate_fake_resource(Flavor, name=name, vcpus=vcpus, ram=ram, disk=0, extra_specs={})
    for name, vcpus, ram in (("small", 1, 512), ("twin", 1, 512), ("large", 4, 8192))
]


def vm(size_name: str = "") -> VmSpec:
    return VmSpec(ref="x", name="x", power=Power.OFF, vcpus=1, memory_bytes=512 * MIB, size_name=size_name)


def cloud(*found: Any, most: int | None = 10) -> Connection:
    limits = SimpleNamespace(absolute=SimpleNamespace(server_group_members=most))
    connection = Connection("nowhere")
    compute = SimpleNamespace(server_groups=lambda: iter(found), get_limits=lambda: limits)
    connection._made = SimpleNamespace(compute=compute)
    return connection


def group(name: str, **values: Any) -> Any:
    return fakes.generate_fake_resource(ServerGroup, **{"name": name, "policy": "affinity", "member_ids": [], **values})


def test_the_plans_flavor_goes_before_the_one_that_fits() -> None:
    assert flavors.wanted(KNOWN, vm(), "large").name == "large"
    assert flavors.wanted(KNOWN, vm("twin"), "small").name == "small"
    assert flavors.wanted(KNOWN, vm("twin"), None).name == "twin"
    with pytest.raises(NotFound, match="no flavor huge"):
        flavors.wanted(KNOWN, vm(), "huge")
    with pytest.raises(InvalidPlan, match="no flavor has 1 vCPUs"):
        flavors.wanted(KNOWN[:0], vm(), None)


def test_a_group_is_found_by_its_name_alone() -> None:
    web, twins = group("web"), [group("db"), group("db")]
    assert groups.find(cloud(web, *twins), "web").id == web.id
    with pytest.raises(NotFound, match="no server group app"):
        groups.find(cloud(web, *twins), "app")
    with pytest.raises(Conflict, match="2 server groups are named db"):
        groups.find(cloud(web, *twins), "db")


@pytest.mark.parametrize(("most", "told"), [(10, 10), (-1, None), (None, None)])
def test_groups_are_told_with_their_room(most: int | None, told: int | None) -> None:
    old = group("old", policy=None, policies=["anti-affinity"], member_ids=["one", "two"])
    (first, second) = groups.read(cloud(group("web"), old, most=most))
    assert (first.policy, first.members, first.members_max) == ("affinity", 0, told)
    assert (second.policy, second.members, second.members_max) == ("anti-affinity", 2, told)
    assert groups.read(cloud()) == ()
