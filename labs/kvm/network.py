"""The networks "lab" and "drill" of a cloud: bridges without uplink, each named to libvirt as a network of its own.

libvirt only points at the bridge (forward mode 'bridge'), so neither dnsmasq nor a firewall tool is needed.
Where bridges cannot be made (no CAP_NET_ADMIN, no bridge module) the cloud has no network, and guests use user
networking.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt

from labs.kvm.layout import CloudLayout

NETWORK = "lab"
DRILL_NETWORK = "drill"


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", "link", *arguments], capture_output=True, check=False).returncode == 0


def networks(cloud: CloudLayout) -> tuple[tuple[str, str], ...]:
    """Name and bridge of each network of the cloud."""
    return (NETWORK, cloud.bridge), (DRILL_NETWORK, cloud.drill_bridge)


def bridge_exists(bridge: str) -> bool:
    """Tell whether the bridge is there."""
    return Path("/sys/class/net", bridge, "bridge").exists()


def ensure_bridge(bridge: str) -> bool:
    """Create the bridge; return False where the machine cannot have one."""
    if not Path("/dev/net/tun").exists():
        return False
    if not bridge_exists(bridge) and not _ip("add", bridge, "type", "bridge"):
        return False
    return _ip("set", bridge, "up")


def ensure_network(connection: libvirt.virConnect, name: str, bridge: str) -> None:
    """Define a network on a bridge and have it active."""
    try:
        network = connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        network = connection.networkDefineXML(
            f"<network><name>{name}</name><forward mode='bridge'/><bridge name='{bridge}'/></network>"
        )
    if not network.isActive():
        network.create()
    network.setAutostart(True)


def remove_bridge(bridge: str) -> None:
    """Remove the bridge; absent is fine."""
    if bridge_exists(bridge):
        _ip("del", bridge)
