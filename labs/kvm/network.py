"""The isolated network "lab" of a cloud: a bridge without uplink, named to libvirt as a network of its own.

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


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", "link", *arguments], capture_output=True, check=False).returncode == 0


def bridge_exists(cloud: CloudLayout) -> bool:
    """Tell whether the cloud's bridge is there."""
    return Path("/sys/class/net", cloud.bridge, "bridge").exists()


def ensure_bridge(cloud: CloudLayout) -> bool:
    """Create the cloud's bridge; return False where the machine cannot have one."""
    if not Path("/dev/net/tun").exists():
        return False
    if not bridge_exists(cloud) and not _ip("add", cloud.bridge, "type", "bridge"):
        return False
    return _ip("set", cloud.bridge, "up")


def ensure_network(connection: libvirt.virConnect, cloud: CloudLayout) -> None:
    """Define the network "lab" on the cloud's bridge and have it active."""
    try:
        network = connection.networkLookupByName(NETWORK)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        network = connection.networkDefineXML(
            f"<network><name>{NETWORK}</name><forward mode='bridge'/><bridge name='{cloud.bridge}'/></network>"
        )
    if not network.isActive():
        network.create()
    network.setAutostart(True)


def remove_bridge(cloud: CloudLayout) -> None:
    """Remove the cloud's bridge; absent is fine."""
    if bridge_exists(cloud):
        _ip("del", cloud.bridge)
