"""What the credentials of a project learn for the prechecks, and what they are refused, on the lab's real APIs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.precheck import PrecheckActivities
from activities.probe import probe_ports
from drivers.ceph import RbdImages, open_rbd
from drivers.memory import MemoryCloud, Scenario
from drivers.openstack import OpenStackCloud
from labs.openstack import CloudHandle, OpenStackLab
from labs.openstack.ceph import command, ensure_key, remove_key
from tests.drivers.openstack.accounts import member_auth, seen_by, user_with, write_entry
from whimbrel.contracts.activity_io import PrecheckRequest
from whimbrel.dataplane import register_opener
from whimbrel.model.finding import Finding
from whimbrel.model.plan import Companion, VmPlan
from whimbrel.model.vm import DiskSpec, NicSpec, Power, VmSpec

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(300)]
GIB = 1 << 30
register_opener("rbd", open_rbd)


@pytest.fixture
def lab(openstack_lab: OpenStackLab) -> CloudHandle:
    return openstack_lab.cloud("a")


@pytest.fixture
def member(lab: CloudHandle) -> Iterator[OpenStackCloud]:
    cloud = seen_by(lab, "a-member")
    yield cloud
    cloud.close()


@pytest.fixture
def admin(lab: CloudHandle) -> Iterator[Any]:
    conn = lab.connect()
    yield conn
    conn.close()


def wanted(network: str, mac: str, ip: str | None, **changes: Any) -> VmSpec:
    given: dict[str, Any] = {
        "ref": "x",
        "name": "x",
        "power": Power.RUNNING,
        "vcpus": 1,
        "memory_bytes": 160 << 20,
        "disks": (DiskSpec(key="vda", size_bytes=GIB, format="raw", pool="rbd-a"),),
        "nics": (NicSpec(key="net0", mac=mac, network=network, addresses=(ip,) if ip else ()),),
    }
    return VmSpec(**{**given, **changes})


def new_mac() -> str:
    return "fa:16:3e:aa:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(2))


def ours(admin: Any) -> list[str]:
    return [port.name for port in admin.network.ports() if (port.name or "").startswith("whimbrel-")]


# --- a member


def test_a_member_sees_every_quota_and_not_the_backends(lab: CloudHandle, member: OpenStackCloud) -> None:
    facts = member.target_facts()
    assert facts.reachable
    assert set(facts.access.roles) == {"member", "reader"}
    limits = {(quota.resource, quota.pool): quota.limit for quota in facts.limits.quotas}
    assert limits == {
        ("VMs", None): 12,
        ("vCPUs", None): 20,
        ("memory", None): 6144 << 20,
        ("volumes", None): 30,
        ("volume space", None): 200 * GIB,
        ("snapshots", None): 30,
        ("ports", None): 60,
    }
    assert {pool.free_bytes for pool in facts.pools} == {pool.provisionable_bytes for pool in facts.pools} == {None}
    assert {network.name: network.fixed for network in facts.networks} == {"wire": True, "drill": True}
    # tests of mover servers leave theirs there, for the next of them
    assert {size.name for size in facts.sizes} - {"lab.mover"} == {"lab.small", "lab.medium", "lab.large"}
    assert facts.can_create
    assert facts.access.too_old == facts.access.storage_unreached == ()
    assert member.fit(wanted("wire", new_mac(), None)).hosts is None


def test_an_administrator_sees_backends_and_hosts(lab: CloudHandle) -> None:
    cloud = seen_by(lab, "a-tenant-admin")
    facts, fit = cloud.target_facts(), cloud.fit(wanted("wire", new_mac(), None))
    pool = next(pool for pool in facts.pools if pool.name == lab.volume_type)
    assert pool.free_bytes is not None
    assert pool.provisionable_bytes is not None
    assert pool.provisionable_bytes > pool.free_bytes  # thin: Cinder gives away twenty times what there is
    assert fit.hosts == {"nova": 1}
    assert fit.unfit_traits == ()
    odd = wanted("wire", new_mac(), None)
    odd = odd.model_copy(update={"nics": (odd.nics[0].model_copy(update={"model": "vmxnet9"}),)})
    assert cloud.fit(odd).unfit_traits == ("card model vmxnet9",)
    assert cloud.fit(wanted("wire", new_mac(), None, memory_bytes=1 << 50)).hosts is None  # no flavor: target.size
    cloud.close()


def test_no_host_is_a_finding_of_placement(lab: CloudHandle, admin: Any) -> None:
    """The compute host is taken out of service: Nova gives its provider a trait that candidates must not have."""
    service = next(one for one in admin.compute.services() if one.binary == "nova-compute")
    cloud = seen_by(lab, "a-tenant-admin")
    try:
        admin.compute.disable_service(service, service.host, "nova-compute")
        assert cloud.fit(wanted("wire", new_mac(), None)).hosts == {}
    finally:
        admin.compute.enable_service(service, service.host, "nova-compute")
    assert cloud.fit(wanted("wire", new_mac(), None)).hosts == {"nova": 1}
    cloud.close()


def test_quotas_of_a_volume_type_and_what_is_used(lab: CloudHandle, member: OpenStackCloud, admin: Any) -> None:
    project = admin.identity.find_project(lab.tenant, ignore_missing=False).id
    mine = lab.connect(member=True)
    volume: Any = mine.block_storage.create_volume(
        name="osprecheck", size=2, volume_type=lab.volume_type, metadata={"whimbrel_migration": "0123456789"}
    )
    try:
        mine.block_storage.wait_for_status(volume, "available", wait=60)
        admin.set_volume_quotas(project, **{f"gigabytes_{lab.volume_type}": 3, "per_volume_gigabytes": 9})
        limits = member.target_facts().limits
        typed = next(quota for quota in limits.quotas if quota.pool == lab.volume_type)
        assert (typed.resource, typed.limit, typed.used) == ("volume space", 3 * GIB, 2 * GIB)
        assert limits.volume_max_bytes == 9 * GIB
        assert "osprecheck" in limits.volumes_made
    finally:
        admin.set_volume_quotas(project, **{f"gigabytes_{lab.volume_type}": -1, "per_volume_gigabytes": -1})
        mine.block_storage.delete_volume(volume)
        mine.block_storage.wait_for_delete(volume, wait=60)
        mine.close()


@contextmanager
def foreign_network(admin: Any) -> Iterator[Any]:
    """A network that all projects may use and another one owns, with one address taken there."""
    name = f"foreign-{secrets.token_hex(3)}"
    network = admin.network.create_network(name=name, is_shared=True, provider_network_type="local")
    try:
        subnet = admin.network.create_subnet(
            network_id=network.id, ip_version=4, cidr="203.0.113.0/24", enable_dhcp=False, name=name
        )
        admin.network.create_port(
            network_id=network.id, fixed_ips=[{"subnet_id": subnet.id, "ip_address": "203.0.113.50"}], name="hidden"
        )
        yield network
    finally:
        for port in list(admin.network.ports(network_id=network.id)):
            admin.network.delete_port(port)
        admin.network.delete_network(network)


def test_a_member_may_fix_addresses_on_its_own_network_only(member: OpenStackCloud, admin: Any) -> None:
    migration = secrets.token_hex(5)
    with foreign_network(admin) as network:
        facts = member.target_facts()
        assert {one.name: one.fixed for one in facts.networks}[network.name] is False
        there = wanted(network.name, new_mac(), "203.0.113.60")
        refused = probe_ports(member, there, migration, patient=False)
        assert "disallowed by policy" in refused["net0"]
    assert probe_ports(member, wanted("wire", new_mac(), None), migration, patient=False) == {}
    assert migration not in " ".join(ours(admin))


def test_addresses_that_are_taken_unseen_or_outside_are_refused_for_real(
    lab: CloudHandle, member: OpenStackCloud, admin: Any
) -> None:
    migration, free = secrets.token_hex(5), lab.address(97).ip
    with foreign_network(admin) as network:
        admins = seen_by(lab, "a")
        taken = wanted(network.name, new_mac(), "203.0.113.50")
        assert "203.0.113.50 by port hidden" in admins.fit(taken).taken["net0"]
        assert member.fit(taken).taken == {}, "a member does not see the port of another project"
        assert "203.0.113.50" in probe_ports(admins, taken, migration, patient=False)["net0"]
        admins.close()
    outside = probe_ports(member, wanted("wire", new_mac(), "192.0.2.9"), migration, patient=False)
    assert "192.0.2.9" in outside["net0"]
    mac = new_mac()
    two = wanted("wire", mac, free)
    two = two.model_copy(update={"nics": (*two.nics, two.nics[0].model_copy(update={"key": "net1"}))})
    assert probe_ports(member, two, migration, patient=False) == {}, "found again, as after a killed attempt"
    assert migration not in " ".join(ours(admin))


# --- credentials


def test_a_reader_is_told_that_it_may_not_act(lab: CloudHandle, tmp_path: Path) -> None:
    with user_with(lab, "reader", tmp_path / "clouds.yaml") as config:
        cloud = seen_by(lab, "mine", config)
        facts = cloud.target_facts()
        assert facts.reachable
        assert facts.access.roles == ("reader",)
        assert not facts.can_create
        cloud.close()


def test_credentials_with_an_end_tell_it(lab: CloudHandle, tmp_path: Path) -> None:
    auth = member_auth(lab)
    conn = lab.connect(member=True)
    config = write_entry(
        lab,
        tmp_path / "token.yaml",
        {
            "auth_url": auth["auth_url"],
            "token": conn.auth_token,
            "project_name": lab.tenant,
            "project_domain_id": "default",
        },
        auth_type="token",
    )
    cloud = seen_by(lab, "mine", config)
    ends = cloud.target_facts().access.ends_at
    cloud.close()
    assert ends is not None
    assert timedelta(hours=1) < ends - datetime.now(UTC) < timedelta(hours=25)
    identity: Any = conn.identity
    soon = (datetime.now(UTC) + timedelta(minutes=20)).replace(microsecond=0)
    secret = identity.create_application_credential(
        conn.current_user_id, f"osprecheck-{secrets.token_hex(3)}", expires_at=soon.strftime("%Y-%m-%dT%H:%M:%S")
    )
    try:
        config = write_entry(
            lab,
            tmp_path / "credential.yaml",
            {
                "auth_url": auth["auth_url"],
                "application_credential_id": secret.id,
                "application_credential_secret": secret.secret,
            },
            auth_type="v3applicationcredential",
        )
        cloud = seen_by(lab, "mine", config)
        assert cloud.target_facts().access.ends_at == soon
        cloud.close()
    finally:
        identity.delete_application_credential(conn.current_user_id, secret.id)
        conn.close()


@pytest.mark.parametrize(
    ("change", "more", "why"),
    [
        ({"password": "wrong"}, {}, "authentication"),
        ({"project_name": "nowhere"}, {}, "authentication"),
        ({}, {"region_name": "Atlantis"}, "Atlantis"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_and_told(
    lab: CloudHandle, tmp_path: Path, change: dict[str, str], more: dict[str, str], why: str
) -> None:
    auth = {**member_auth(lab), **change}
    cloud = seen_by(lab, "mine", write_entry(lab, tmp_path / "clouds.yaml", auth, **more))
    for facts in (cloud.target_facts(), cloud.source_facts("any")):
        assert not facts.reachable
        assert why in facts.access.why_refused
        assert str(auth["password"]) not in facts.access.why_refused or auth["password"] == "lab-only"
    cloud.close()


def test_a_region_is_chosen_of_those_that_the_entry_lists(lab: CloudHandle, tmp_path: Path) -> None:
    regions = ["Atlantis", lab.layout.region]
    config = write_entry(lab, tmp_path / "clouds.yaml", member_auth(lab), regions=regions, region_name=None)
    first, second = seen_by(lab, "mine", config), seen_by(lab, "mine", config, region=lab.layout.region)
    assert "Atlantis" in first.target_facts().access.why_refused
    assert second.target_facts().reachable
    unlisted = seen_by(lab, "mine", config, region="Lemuria")
    assert "Lemuria" in unlisted.target_facts().access.why_refused
    for cloud in (first, second, unlisted):
        cloud.close()


# --- storage


def test_storage_that_the_mover_cannot_open_is_told(lab: CloudHandle, tmp_path: Path) -> None:
    pools = {lab.volume_type: lab.pool, lab.shared_type: lab.shared_pool}
    stranger = seen_by(lab, "a-member", images=RbdImages(conf=str(lab.ceph_conf), user="nobody"))
    assert len(stranger.target_facts().access.storage_unreached) == len(pools)
    absent = seen_by(lab, "a-member", images=RbdImages(conf=str(tmp_path / "ceph.conf")))
    assert "no Ceph configuration" in absent.target_facts().access.storage_unreached[0]
    user = f"osprecheck-{secrets.token_hex(3)}"
    layout = lab.layout.lab
    try:
        conf = ensure_key(layout, user, [lab.pool], tmp_path)
        half = seen_by(lab, "a-member", images=RbdImages(conf=str(conf), user=user))
        (told,) = half.target_facts().access.storage_unreached
        assert told.startswith(f"{lab.shared_pool}: ")
        caps = ("mon", "profile rbd", "mgr", "profile rbd", "osd", f"profile rbd-read-only pool={lab.pool}")
        command(layout, "auth", "caps", f"client.{user}", *caps)
        read_only = seen_by(
            lab, "a-member", images=RbdImages(conf=str(conf), user=user), pools={lab.volume_type: lab.pool}
        )
        (told,) = read_only.target_facts().access.storage_unreached
        assert "the key does not allow it" in told
    finally:
        remove_key(layout, user)


# --- the whole precheck


class Two:
    """A registry of a memory cloud as source and the lab as target."""

    def __init__(self, source: Any, target: Any) -> None:
        self._clouds = {"here": source, "lab": target}

    def get(self, name: str) -> Any:
        return self._clouds[name]

    def names(self) -> list[str]:
        return sorted(self._clouds)


@pytest.fixture
def source() -> Iterator[tuple[MemoryCloud, Scenario]]:
    name = f"osprecheck-{secrets.token_hex(4)}"
    yield MemoryCloud(name), Scenario(name)
    MemoryCloud.reset(name)


def prechecked(
    target: OpenStackCloud, source: MemoryCloud, tmp_path: Path, *others: str, **plan: Any
) -> dict[str, Finding]:
    given = {
        "plan": "p",
        "vm": "web",
        "source": "here",
        "target": "lab",
        "networks": {"*": "wire"},
        "storage": {"*": "rbd-a"},
        "disk_format": "raw",
        "companions": tuple(Companion(vm=name) for name in others),
    }
    request = PrecheckRequest(plan=VmPlan(**{**given, **plan}), migration=secrets.token_hex(5))
    activities = PrecheckActivities(Two(source, target), tmp_path)
    answer = ActivityEnvironment().run(activities.run, request)
    return {finding.rule: finding for finding in answer.result.findings}


def small(scenario: Scenario, *names: str) -> None:
    for name in names:
        scenario.add_vm(name, disks=[(1 << 20, "raw")], memory_bytes=160 << 20, vcpus=1)


def test_a_plan_is_summed_and_a_member_is_told_what_it_may_not_know(
    lab: CloudHandle, member: OpenStackCloud, admin: Any, source: tuple[MemoryCloud, Scenario], tmp_path: Path
) -> None:
    """Each VM alone fits; together they are one instance too many."""
    here, scenario = source
    names = [f"app{number}" for number in range(12)]
    small(scenario, "web", *names)
    alone = prechecked(member, here, tmp_path)
    assert [finding.line for finding in alone.values() if finding.blocks] == []
    assert alone["network.port"].found == "1 ports were made and removed"
    assert alone["path.write"].outcome == "ok"
    asked_in_vain = {rule for rule, finding in alone.items() if "administrator" in finding.found}
    assert asked_in_vain >= {"target.hosts", "storage.free-space", "storage.provisioning"}
    assert {alone[rule].outcome for rule in asked_in_vain} == {"unknown"}
    together = prechecked(member, here, tmp_path, *names)
    assert [rule for rule, finding in together.items() if finding.blocks] == ["quota.plan"]
    assert "13 VMs together: VMs: 13 needed, 12 of 12 left" in together["quota.plan"].found
    assert prechecked(member, here, tmp_path, *names[:11])["quota.plan"].outcome == "ok"


def test_a_reader_is_refused_at_the_precheck(
    lab: CloudHandle, source: tuple[MemoryCloud, Scenario], tmp_path: Path
) -> None:
    here, scenario = source
    small(scenario, "web")
    with user_with(lab, "reader", tmp_path / "clouds.yaml") as config:
        cloud = seen_by(lab, "mine", config)
        found = prechecked(cloud, here, tmp_path)
        cloud.close()
    assert found["target.permissions"].blocks
    assert "policy" in found["path.write"].found.lower()
    assert found["network.port"].blocks


def test_a_foreign_network_is_refused_at_the_precheck(
    member: OpenStackCloud, admin: Any, source: tuple[MemoryCloud, Scenario], tmp_path: Path
) -> None:
    here, scenario = source
    small(scenario, "web")
    with foreign_network(admin) as network:
        found = prechecked(member, here, tmp_path, networks={"*": network.name})
    assert [rule for rule, finding in found.items() if finding.blocks] == ["network.port"]
    assert "disallowed by policy" in found["network.port"].found
