"""What the cloud says about one VM before anything of it is made: hosts by placement's candidates, ports in use."""

from __future__ import annotations

from collections import Counter
from typing import Any

from openstack import exceptions as sdk

from drivers.openstack import flavors, inventory
from drivers.openstack.connection import Connection
from whimbrel.errors import InvalidPlan, NotFound, PermissionDenied, Unsupported
from whimbrel.model.facts import FitFacts
from whimbrel.model.vm import VmSpec

CANDIDATES_MICROVERSION = "1.29"
"""Tells traits and the root of each provider; since Rocky."""
MOST_CANDIDATES = 1000
BUS_TRAIT = "COMPUTE_STORAGE_BUS_"
CARD_TRAIT = "COMPUTE_NET_VIF_MODEL_"
SECURE_BOOT_TRAIT = "COMPUTE_SECURITY_UEFI_SECURE_BOOT"


def read(connection: Connection, vm: VmSpec, size: str | None = None) -> FitFacts:
    """The facts of a VM whose cards name networks of this cloud. Raises Unavailable, AuthFailed, Throttled.

    ``size`` is the flavor that the plan asks for.
    """
    facts = FitFacts(asked=True, taken=_taken(connection, vm))
    try:
        candidates = _candidates(connection, vm, size)
        zones = _zones(connection)
    except (PermissionDenied, NotFound, Unsupported, InvalidPlan):
        return facts  # administrators only; or no flavor fits, which target.size tells
    roots = {
        root: summary
        for root, summary in candidates.items()
        if root == summary.get("root_provider_uuid", root) and root in zones
    }
    free = Counter[str]()
    for summary in roots.values():
        for kind, entry in summary["resources"].items():
            free[kind] += max(entry["capacity"] - entry["used"], 0)
    return facts.model_copy(
        update={
            "hosts": dict(Counter(zones[root] for root in roots)),
            "hosts_free": (free["VCPU"], free["MEMORY_MB"] << 20),
            "unfit_traits": _unfit(vm, roots),
        }
    )


def _candidates(connection: Connection, vm: VmSpec, size: str | None) -> dict[str, Any]:
    """Provider id -> its summary, for hosts that placement would give the VM's flavor now."""
    known = inventory.read(connection).flavors.values()
    flavor = flavors.wanted(known, vm, size)
    query = {
        "resources": f"VCPU:{flavor.vcpus},MEMORY_MB:{flavor.ram}",
        "limit": str(MOST_CANDIDATES),
    }
    with connection.using("asking placement for hosts") as conn:
        answer = conn.placement.get("/allocation_candidates", params=query, microversion=CANDIDATES_MICROVERSION)
        sdk.raise_from_response(answer)
        return dict(answer.json()["provider_summaries"])


def _zones(connection: Connection) -> dict[str, str]:
    """Hypervisor id, which is also its provider's -> zone, of those that are up and take servers."""
    with connection.using("listing compute hosts") as conn:
        zones = {service.host: service.availability_zone or "" for service in conn.compute.services()}
        return {
            str(host.id): zones.get((host.service_details or {}).get("host", ""), "")
            for host in conn.compute.hypervisors(details=True)
            if host.state == "up" and host.status == "enabled"
        }


def _unfit(vm: VmSpec, roots: dict[str, Any]) -> tuple[str, ...]:
    """What the VM asks of a host that none with room has, where hosts tell such traits at all."""
    told = {trait for summary in roots.values() for trait in summary.get("traits", ())}
    wishes = {f"disk bus {disk.bus}": BUS_TRAIT + disk.bus.upper() for disk in vm.disks[:1]}
    wishes |= {f"card model {nic.model}": CARD_TRAIT + nic.model.upper() for nic in vm.nics[:1]}
    if vm.firmware == "uefi-secure":
        wishes["secure boot"] = SECURE_BOOT_TRAIT
    tells = any(trait.startswith(BUS_TRAIT) for trait in told)
    return tuple(sorted(text for text, trait in wishes.items() if tells and trait not in told))


def _taken(connection: Connection, vm: VmSpec) -> dict[str, str]:
    """NIC key -> the port that has its MAC or address; only ports that these credentials see."""
    found: dict[str, str] = {}
    networks = {network.name: network.id for network in inventory.read(connection).networks.values()}
    with connection.using("looking for ports with the VM's addresses") as conn:
        for nic in vm.nics:
            if nic.network not in networks:
                continue
            where = {"network_id": networks[nic.network]}
            ways = [("mac_address", nic.mac.lower())]
            ways += [("fixed_ips", f"ip_address={address}") for address in nic.addresses[:1]]
            for way, value in ways:
                for port in conn.network.ports(**where, **{way: value}):
                    found[nic.key] = f"{value.rpartition('=')[2]} by port {port.name or port.id}"
    return found
