"""libvirt's networks: ``whimbrel.ports.network.NetworkPort``. NICs are plugged in when the VM is defined."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from contextlib import suppress
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, domains
from drivers.libvirt.connection import Connection
from whimbrel.model.facts import NetworkFacts


def read_network(xml: str, *, active: bool) -> NetworkFacts:
    """A ``<network>`` read into facts (https://libvirt.org/formatnetwork.html). Pure."""
    network = ET.fromstring(xml)  # noqa: S314 - see the import
    mtu = network.find("mtu")
    forward = network.find("forward")
    cidrs = []
    for ip in network.findall("ip"):
        mask = ip.get("prefix") or ip.get("netmask")
        if ip.get("address") and mask:
            with suppress(ValueError):
                cidrs.append(str(ipaddress.ip_interface(f"{ip.get('address')}/{mask}").network))
    return NetworkFacts(
        name=network.findtext("name") or "",
        active=active,
        isolated=forward is None,
        mtu=int(mtu.get("size", "0")) or None if mtu is not None else None,
        cidrs=tuple(cidrs),
    )


class LibvirtNetworks:
    """``NetworkPort`` over one connection."""

    def __init__(self, connection: Connection, *, isolated: Collection[str] = ()) -> None:
        self._connection = connection
        self._isolated = frozenset(isolated)
        """Networks that the administrator says have no way out, where libvirt cannot tell (bridges of the host)."""

    def networks(self) -> Sequence[NetworkFacts]:
        """libvirt's networks, and ``user`` (QEMU's own NAT, which needs nothing of the host) where QEMU runs."""
        with self._connection.using("listing networks") as conn:
            found = []
            for network in conn.listAllNetworks():
                with suppress(libvirt.libvirtError):
                    facts = read_network(network.XMLDesc(), active=bool(network.isActive()))
                    alone = facts.isolated or facts.name in self._isolated
                    found.append(facts.model_copy(update={"isolated": alone}))
            if conn.getType() == "QEMU":
                found.append(NetworkFacts(name="user", isolated=False))
        return found

    def mac_owners(self, macs: Sequence[str]) -> dict[str, str]:
        """For those of ``macs`` that a VM on this host has: its name."""
        wanted = {mac.lower() for mac in macs}
        with self._connection.using("looking for MAC addresses") as conn:
            return {
                nic.mac: domain.name()
                for domain, xml in domains.all_vms(conn)
                for nic in domain_xml.nics(xml)
                if nic.mac in wanted
            }

    def ensure_port(self, network: str, mac: str, address: str | None, *, migration: str) -> str:
        """Nothing to reserve: libvirt takes MACs as the definition gives them. Returns ``""``."""
        return ""

    def ensure_port_absent(self, port: str, *, migration: str) -> None:
        """Nothing to give back."""
