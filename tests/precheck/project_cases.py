"""Cases of the rules about quotas, sizes, hosts, ports, credentials and reach."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.precheck.case import Case, case_found, case_ok, case_unknown
from tests.precheck.healthy import GIB, MIB, NOW, facts, healthy
from whimbrel.model.facts import AccessFacts, ServerGroup
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.plan import Companion, PlacementPolicy, Window
from whimbrel.model.quota import Limits, MoverServer, Quota, Resource, VmSize
from whimbrel.model.vm import VmSpec

NONE: dict[str, int] = {}


def quota(resource: Resource, limit: int, used: int = 0, pool: str | None = None) -> Quota:
    return Quota(resource=resource, limit=limit, used=used, pool=pool)


def limits(*quotas: Quota, **more: Any) -> Limits:
    return Limits(quotas=quotas, **{"volume_unit_bytes": GIB, "snapshots_take_space": True, **more})


def vm() -> VmSpec:
    """The healthy facts' VM: 2 vCPUs, 4 GiB, disks of 20 and 10 GiB, one card."""
    found = healthy().source.vm
    assert found is not None
    return found


def among(*names: str, **changes: Any) -> PrecheckFacts:
    """The healthy VM with companions of these names, each like it but for a third disk's size of 512 MiB."""
    small = vm().disks[0].model_copy(update={"key": "vdc", "size_bytes": 512 * MIB, "location": "small"})
    beside = tuple(vm().model_copy(update={"name": name, "ref": f"ref-{name}", "disks": (small,)}) for name in names)
    given = {"plan__companions": tuple(Companion(vm=name) for name in names), "companions": beside}
    return facts(**{**given, **changes})


def target(*quotas: Quota, **changes: Any) -> PrecheckFacts:
    return facts(**{"target__limits": limits(*quotas), **changes})


GPU = VmSize(id="1", name="g.large", vcpus=8, memory_bytes=64 * GIB, special=("pci_passthrough:alias=gpu:1",))
LARGE = VmSize(id="2", name="m.large", vcpus=4, memory_bytes=8 * GIB)
SMALL = VmSize(id="3", name="m.small", vcpus=1, memory_bytes=2 * GIB)
HUGE = VmSize(id="4", name="m.huge", vcpus=8, memory_bytes=32 * GIB)
GROUP = ServerGroup(name="spread", policy="anti-affinity", members=1)


def placed(**values: Any) -> PlacementPolicy:
    return PlacementPolicy(**values)


OLD_TO_HUGE = placed(sizes={"old": "m.huge"})


def grouped(*groups: ServerGroup) -> PrecheckFacts:
    return facts(plan__placement=placed(group="spread"), target__groups=groups)


ASKED: dict[str, Any] = {"fit__asked": True, "fit__hosts": {"nova": 2}, "fit__hosts_free": (8, 16 * GIB)}
SERVER = MoverServer(vcpus=1, memory_bytes=GIB, max_disks=1)
WIDE_SERVER = SERVER.model_copy(update={"max_disks": 2})
FROZEN_EARLY: dict[str, Any] = {
    "target__limits__mover": MoverServer(vcpus=8, memory_bytes=16 * GIB, max_disks=2),
    "target__capabilities__announces": True,
}
ALL_REACHED = SERVER.model_copy(
    update={"pools_reached": tuple(disk.pool for disk in vm().disks if disk.pool is not None)}
)
HALF_HOUR = AccessFacts(ends_at=NOW + timedelta(minutes=30))

QUOTA: tuple[Case, ...] = (
    case_found("quota.vm", target(quota("VMs", 10, 10)), "VMs: 1 needed, 0 of 10 left", "raise"),
    case_found("quota.vm", target(quota("vCPUs", 20, 19)), "vCPUs: 2 needed, 1 of 20 left"),
    case_found("quota.vm", target(quota("memory", 8 * GIB, 5 * GIB)), "memory: 4 GiB needed, 3 GiB of 8 GiB left"),
    case_found("quota.vm", target(quota("volumes", 5, 4)), "volumes: 2 needed, 1 of 5 left"),
    case_found(
        "quota.vm", target(quota("volume space", 100 * GIB, 41 * GIB)), "60 GiB needed", "59 GiB of 100 GiB left"
    ),
    case_ok("quota.vm", target(quota("volume space", 100 * GIB, 40 * GIB)), "60 GiB needed, 60 GiB of 100 GiB left"),
    case_found("quota.vm", target(quota("volumes", 1, 0, "fast")), "volumes in fast: 2 needed"),
    case_found("quota.vm", target(quota("ports", 60, 60)), "ports: 1 needed"),
    case_found("quota.vm", target(quota("snapshots", 1)), "snapshots: 2 needed"),
    case_ok("quota.vm", target(quota("snapshots", 1), target__capabilities__start_paused=False), "nothing is limited"),
    case_ok("quota.vm", target(quota("VMs", 1), quota("volumes", 50, 0)), "VMs: 1 needed, 1 of 1 left"),
    case_ok("quota.vm", target(quota("volumes", 1, 0, "slow")), "nothing is limited"),
    case_ok("quota.vm", facts(), "nothing is limited"),
    case_ok("quota.vm", target(quota("volumes", 2, 2), stage="cutover"), "nothing is limited"),
    case_found(
        "quota.vm", target(quota("volumes", 2, 2), stage="cutover", plan__mode="dual-attach"), "volumes: 2 needed"
    ),
    case_found("quota.vm", target(quota("VMs", 2, 2), stage="cutover"), "VMs: 1 needed"),
    case_found("quota.vm", target(quota("vCPUs", 4, 1), target__sizes=(LARGE,)), "vCPUs: 4 needed"),
    case_unknown("quota.vm", target(quota("VMs", 1), source__vm=None)),
    case_found("quota.vm", target(quota("VMs", 1), target__limits__mover=WIDE_SERVER), "VMs: 2 needed"),
    case_found("quota.vm", target(quota("vCPUs", 2), target__limits__mover=WIDE_SERVER), "vCPUs: 3 needed"),
    case_found("quota.vm", target(quota("memory", 4 * GIB), target__limits__mover=WIDE_SERVER), "5 GiB needed"),
    case_found("quota.vm", target(quota("ports", 1), target__limits__mover=WIDE_SERVER), "ports: 2 needed"),
    case_found("quota.vm", target(quota("ports", 2), **FROZEN_EARLY), "ports: 3 needed"),
    case_found("quota.vm", target(quota("vCPUs", 15), **FROZEN_EARLY), "vCPUs: 16 needed"),
    case_found("quota.vm", target(quota("memory", 31 * GIB), **FROZEN_EARLY), "memory: 32 GiB needed"),
    case_ok("quota.vm", target(quota("VMs", 2), **FROZEN_EARLY), "VMs: 2 needed"),
    case_found("quota.vm", target(quota("volumes", 3), target__limits__mover=WIDE_SERVER), "volumes: 4 needed"),
    case_found("quota.vm", target(quota("volume space", 89 * GIB), target__limits__mover=WIDE_SERVER), "90 GiB needed"),
    case_ok(
        "quota.vm",
        target(quota("volumes", 2), target__limits__mover=WIDE_SERVER, target__capabilities__start_paused=False),
        "volumes: 2 needed",
    ),
    case_found(
        "quota.vm",
        target(
            quota("snapshots", 1),
            target__capabilities__start_paused=False,
            target__capabilities__points_outlive_start=True,
        ),
        "snapshots: 2 needed",
    ),
    case_ok(
        "quota.vm", target(quota("VMs", 1), target__limits__mover=WIDE_SERVER, plan__mode="dual-attach"), "1 needed"
    ),
    case_found(
        "quota.plan", among("web", "app", target__limits=limits(quota("VMs", 2))), "3 VMs", "3 needed, 2 of 2", "--vm"
    ),
    case_found(
        "quota.plan",
        among("web", target__limits=limits(quota("volume space", 30 * GIB), snapshots_take_space=False)),
        "volume space: 31 GiB needed",
    ),
    case_ok("quota.plan", among("web", target__limits=limits(quota("VMs", 2))), "2 VMs together", "2 needed, 2 of 2"),
    case_ok(
        "quota.plan",
        among("web", target__limits=limits(quota("VMs", 1)), target__vm_names={"web": "77"}),
        "1 VMs together",
    ),
    case_ok(
        "quota.plan",
        among("web", target__limits=limits(quota("volumes", 3, 1), volumes_made=("web-vdc-0123456789",))),
        "2 needed, 2 of 3 left",
    ),
    case_found(
        "quota.plan",
        among("web", target__limits=limits(quota("volumes", 3, 1), volumes_made=("web-vdc-backup",))),
        "3 needed, 2 of 3 left",
    ),
    case_ok("quota.plan", target(quota("VMs", 0)), "alone"),
    case_ok("quota.plan", among("web"), "nothing is limited"),
    case_unknown("quota.plan", among("web", companions=None, target__limits=limits(quota("VMs", 9))), "other VMs"),
    case_found("quota.points", facts(source__limits=limits(quota("snapshots", 3))), "4 needed", "kvm-a"),
    case_found("quota.points", facts(source__limits=limits(quota("volume space", 59 * GIB))), "60 GiB needed"),
    case_ok(
        "quota.points", facts(source__limits=limits(quota("volume space", 1), snapshots_take_space=False)), "nothing"
    ),
    case_ok("quota.points", facts(source__limits=limits(quota("snapshots", 2)), plan__mode="cold"), "2 needed"),
    case_ok("quota.points", facts(source__limits=limits(quota("snapshots", 0)), plan__mode="dual-attach")),
    case_ok("quota.points", facts(source__limits=limits(quota("snapshots", 2), mover=WIDE_SERVER)), "2 needed"),
    case_found("quota.points", facts(source__limits=limits(quota("VMs", 0), mover=WIDE_SERVER)), "VMs: 1 needed"),
    case_found("quota.points", facts(source__limits=limits(quota("volumes", 1), mover=WIDE_SERVER)), "2 needed"),
    case_found("quota.points", among("web", source__limits=limits(quota("snapshots", 5))), "6 needed"),
    case_ok(
        "quota.points",
        among("web", source__limits=limits(quota("snapshots", 5, 1), snapshots_made={"small": 2})),
        "4 needed, 4 of 5 left",
    ),
    case_unknown("quota.points", among("web", companions=None, source__limits=limits(quota("snapshots", 9)))),
    case_found("quota.volume-size", facts(target__limits=limits(volume_max_bytes=15 * GIB)), "vda (20 GiB)", "15 GiB"),
    case_ok("quota.volume-size", facts(target__limits=limits(volume_max_bytes=20 * GIB)), "20 GiB"),
    case_found("target.size", facts(target__sizes=(SMALL,)), "2 vCPUs and 4 GiB", "flavor"),
    case_found("target.size", facts(target__sizes=(SMALL, GPU)), "g.large (pci_passthrough:alias=gpu:1)"),
    case_ok("target.size", facts(target__sizes=(SMALL, GPU), source__vm__size_name="g.large"), "g.large"),
    case_ok("target.size", facts(target__sizes=(SMALL, GPU, LARGE)), "m.large (4 vCPUs, 8 GiB) for 2 vCPUs"),
    case_ok("target.size", facts(), "any size"),
    case_found("target.size", facts(plan__placement=placed(sizes={"*": "x"})), "has none", "take placement.sizes out"),
    case_ok("target.size", facts(target__sizes=(LARGE, HUGE), plan__placement=placed(sizes={"*": "m.huge"})), "m.huge"),
    case_ok(
        "target.size",
        facts(
            target__sizes=(LARGE, HUGE), plan__placement=placed(sizes={"old": "m.huge"}), source__vm__size_name="old"
        ),
        "m.huge (8 vCPUs, 32 GiB), as the plan says",
    ),
    case_ok(
        "target.size", facts(target__sizes=(LARGE, HUGE), plan__placement=placed(sizes={"old": "m.huge"})), "m.large"
    ),
    case_found("target.size", facts(target__sizes=(LARGE,), plan__placement=placed(sizes={"*": "m.huge"})), "m.huge"),
    case_found(
        "target.size",
        facts(target__sizes=(SMALL,), plan__placement=placed(sizes={"*": "m.small"})),
        "m.small (1 vCPUs, 2 GiB), which the plan names, is less than 2 vCPUs",
        severity=Severity.WARN,
    ),
    case_found(
        "quota.vm",
        target(quota("vCPUs", 9, 2), target__sizes=(LARGE, HUGE), plan__placement=placed(sizes={"*": "m.huge"})),
        "vCPUs: 8 needed",
    ),
    case_found(
        "quota.plan",
        among(
            "web",
            target__limits=limits(quota("vCPUs", 11)),
            target__sizes=(LARGE, HUGE),
            plan__placement=placed(sizes={"*": "m.huge"}),
            plan__companions=(Companion(vm="web", placement=placed()),),
        ),
        "vCPUs: 12 needed",
    ),
    case_ok("target.zone", facts(), "the cloud chooses"),
    case_ok("target.zone", facts(plan__placement=placed(zone="az-2"), target__zones=("az-1", "az-2")), "az-2"),
    case_found("target.zone", facts(plan__placement=placed(zone="az-3"), target__zones=("az-1", "az-2")), "az-1, az-2"),
    case_found("target.zone", facts(plan__placement=placed(zone="az-3")), "there are none", "placement.zone"),
    case_ok("target.group", facts(), "none"),
    case_ok("target.group", grouped(GROUP), "spread (anti-affinity), 1 members"),
    case_ok("target.group", grouped(GROUP.model_copy(update={"members_max": 2})), "spread"),
    case_found("target.group", grouped(GROUP.model_copy(update={"members_max": 1})), "1 of at most 1", "raise"),
    case_found("target.group", grouped(GROUP, GROUP), "2 server groups are named spread"),
    case_found("target.group", grouped(), "no server group is named spread", "at the target"),
    case_found(
        "target.group",
        among(
            "web",
            "db",
            plan__placement=placed(group="spread"),
            target__groups=(GROUP.model_copy(update={"members_max": 3}),),
        ),
        "3 VMs are to join spread",
    ),
    case_ok(
        "target.group",
        among(
            "web",
            plan__placement=placed(group="spread"),
            plan__companions=(Companion(vm="web", placement=placed(zone="az-1")),),
            target__groups=(GROUP.model_copy(update={"members_max": 2}),),
        ),
        "spread",
    ),
    case_found(
        "storage.provisioning",
        facts(target__pools__0__provisionable_bytes=29 * GIB),
        "fast takes 29 GiB more, 30 GiB needed",
    ),
    case_ok("storage.provisioning", facts(target__pools__0__provisionable_bytes=30 * GIB), "room in 1 pools"),
    case_found("storage.provisioning", among("web", target__pools__0__provisionable_bytes=30 * GIB), "needed"),
    case_unknown("storage.provisioning", target(quota("VMs", 9)), "administrator"),
    case_found(
        "storage.plan-space",
        among("web", target__pools__0__free_bytes=8 * GIB),
        "2 VMs",
        "fast needs 8.5 GiB and has 8",
    ),
    case_ok(
        "storage.plan-space",
        among("web", target__pools__0__free_bytes=8 * GIB, target__vm_names={"web": "1"}),
        "1 VMs",
    ),
    case_unknown("storage.plan-space", among("web", target__pools__0__free_bytes=None)),
    case_unknown("storage.free-space", facts(target__pools__0__free_bytes=None), "administrator"),
    case_unknown("storage.headroom", facts(target__pools__0__free_bytes=None)),
)

FIT: tuple[Case, ...] = (
    case_ok("target.hosts", facts(), "nothing places"),
    case_ok("target.hosts", facts(**ASKED), "2 in nova"),
    case_found("target.hosts", facts(**ASKED, plan__placement=placed(zone="az-1")), "no host at kvm-b in zone az-1"),
    case_ok("target.hosts", facts(**ASKED, plan__placement=placed(zone="nova")), "2 in nova"),
    case_found("target.hosts", facts(**{**ASKED, "fit__hosts": NONE}), "no host at kvm-b", "2 vCPUs and 4 GiB"),
    case_unknown("target.hosts", facts(**{**ASKED, "fit__hosts": None}), "administrator"),
    case_found(
        "target.hosts", among("web", **{**ASKED, "fit__hosts_free": (3, 64 * GIB)}), "2 VMs together", "4 vCPUs"
    ),
    case_found("target.hosts", among("web", **{**ASKED, "fit__hosts_free": (9, 7 * GIB)}), "7 GiB free"),
    case_ok("target.hosts", among("web", **ASKED), "2 in nova"),
    case_ok(
        "target.memory",
        facts(target__memory_free_bytes=None, target__memory_total_bytes=None, **ASKED),
        "target.hosts",
    ),
    case_found("target.traits", facts(**ASKED, fit__unfit_traits=("bus sata",)), "bus sata"),
    case_unknown("target.traits", facts(**{**ASKED, "fit__hosts": None})),
    case_ok("target.traits", facts(**ASKED)),
    case_found(
        "network.port",
        facts(fit__ports_tried=True, fit__ports_refused={"net0": "MAC in use by port x"}),
        "net0: MAC in use by port x",
    ),
    case_ok("network.port", facts(fit__ports_tried=True, target__networks__0__fixed=False), "made and removed"),
    case_found("network.port", facts(fit__taken={"net0": "10.1.0.7 by port lb"}), "10.1.0.7 by port lb"),
    case_found("network.port", facts(target__networks__0__fixed=False), "office-b", "another project"),
    case_ok("network.port", target(quota("ports", 9), target__networks__0__fixed=True)),
    case_unknown("network.port", target(quota("ports", 9)), "office-b"),
    case_found("network.address-pairs", facts(source__address_pairs=("net0: 10.1.0.100",)), "net0: 10.1.0.100"),
    case_unknown("network.address-pairs", facts(source__vm=None)),
    case_found("network.floating", facts(source__floating_addresses=("203.0.113.7",)), "203.0.113.7", "DNS"),
    case_found("network.new-filters", facts(target__networks__0__filters=("default",)), "office-b (default)"),
)

ACCESS: tuple[Case, ...] = (
    case_found(
        "connect.credentials",
        facts(target__access=AccessFacts(why_refused="asking failed: 401"), target__reachable=False),
        "kvm-b: asking failed: 401",
    ),
    case_ok("connect.target", facts(target__access=AccessFacts(why_refused="401"), target__reachable=False), "answers"),
    case_ok("connect.source", facts(source__access=AccessFacts(why_refused="401"), source__reachable=False), "answers"),
    case_ok("connect.credentials", facts(source__access=AccessFacts(roles=("member", "reader"))), "member, reader"),
    case_unknown("connect.credentials", facts(target__reachable=False)),
    case_found("connect.api-versions", facts(source__access=AccessFacts(too_old=("Nova 2.1",))), "kvm-a: Nova 2.1"),
    case_found("connect.credential-life", facts(source__access=HALF_HOUR), "kvm-a: 30 min left", "window's end"),
    case_ok("connect.credential-life", facts(source__access=HALF_HOUR, plan__window=Window()), "forecast"),
    case_found(
        "connect.credential-life",
        facts(source__access=HALF_HOUR, plan__window=Window(), plan__bandwidth_bytes_per_s=1.0 * MIB),
        "forecast end",
    ),
    case_found(
        "connect.credential-life",
        facts(target__access=AccessFacts(ends_at=NOW + timedelta(minutes=5)), plan__window=Window(), stage="plan"),
        "kvm-b: 5 min left",
    ),
    case_unknown(
        "connect.credential-life",
        facts(
            source__access=HALF_HOUR, plan__window=Window(), path__read_bytes_per_s=None, path__write_bytes_per_s=None
        ),
        "bandwidth",
    ),
    case_found(
        "connect.storage",
        facts(target__access=AccessFacts(storage_unreached=("volumes-b: no keyring",))),
        "kvm-b: volumes-b: no keyring",
    ),
    case_unknown("connect.storage", facts(source__reachable=False)),
    case_found(
        "connect.mover",
        facts(source__access=AccessFacts(mover_lacks=("there is no image mover",))),
        "kvm-a: there is no image mover",
        "`mover` section",
    ),
    case_found(
        "connect.mover",
        facts(source__limits=Limits(mover=SERVER), target__limits=Limits(mover=SERVER)),
        "kvm-a: 2 disks, 1 allowed",
        "kvm-b: 2 disks, 1 allowed",
        "max_disks",
    ),
    case_ok("connect.mover", facts(source__limits=Limits(mover=ALL_REACHED)), "none are needed"),
    case_ok("connect.mover", facts(target__limits=Limits(mover=WIDE_SERVER)), "as kvm-b needs them"),
    case_ok("connect.mover", facts(target__limits=Limits(mover=SERVER), plan__mode="dual-attach"), "kvm-b"),
    case_unknown("connect.mover", facts(source__vm=None)),
)
PROJECT: tuple[Case, ...] = (*QUOTA, *FIT, *ACCESS)
