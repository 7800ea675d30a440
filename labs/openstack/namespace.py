"""The lab's network namespace, its link to this machine, and the choice of its addresses."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Collection
from pathlib import Path

from labs.kvm.errors import LabError
from labs.openstack.layout import CLOUDS, OpenStackLayout


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise LabError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def taken_indexes() -> dict[int, str]:
    """Return number -> device of every 198.18.<number>.0/24 that this machine has an address in."""
    found = {}
    for device in json.loads(_ip("-json", "address", "show") or "[]"):
        for address in device.get("addr_info", ()):
            octets = str(address.get("local", "")).split(".")
            if octets[:2] == ["198", "18"]:
                found[int(octets[2])] = str(device["ifname"])
    return found


def choose_index(key: str, taken: Collection[int]) -> int:
    """Return a number that no lab uses, the first one from the hash ``key`` on."""
    first = int(key, 16)
    for step in range(254):
        index = 1 + (first + step) % 254
        if index not in taken:
            return index
    raise LabError("all 254 networks 198.18.x.0/24 are taken; end other labs")


def index_of(root: Path) -> int:
    """Return the number kept with the lab's data, or a free one."""
    with contextlib.suppress(FileNotFoundError):
        return int((root / "index").read_text())
    return choose_index(OpenStackLayout(root, 0).key, taken_indexes())


def keep_index(layout: OpenStackLayout) -> None:
    """Keep the number with the data: databases and Ceph's monitor map hold addresses."""
    (layout.root / "index").write_text(str(layout.index))


def _etc(layout: OpenStackLayout) -> Path:
    return Path("/etc/netns", layout.namespace)  # `ip netns exec` binds what lies here over /etc


def _write_names(layout: OpenStackLayout) -> None:
    """Let names be resolved from a file: no name server can be reached, and each question would cost 10 s."""
    lines = [f"127.0.0.1 localhost {socket.gethostname()}"]
    lines += [f"{cloud.address} {cloud.hostname} cinder-{cloud.name}" for cloud in map(layout.cloud, CLOUDS)]
    _etc(layout).mkdir(parents=True, exist_ok=True)
    (_etc(layout) / "hosts").write_text("\n".join(lines) + "\n")
    (_etc(layout) / "resolv.conf").write_text("options timeout:1 attempts:1\n")


def ensure(layout: OpenStackLayout) -> None:
    """Create the namespace, the veth pair, addresses and routes. Running it again changes nothing."""
    owner = taken_indexes().get(layout.index)
    if owner not in {None, layout.device}:
        raise LabError(f"network 198.18.{layout.index}.0/24 is taken by {owner}; end that lab, or remove {layout.root}")
    name = layout.namespace
    _write_names(layout)
    if not Path("/run/netns", name).exists():
        _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    if not Path("/sys/class/net", layout.device).exists():
        _ip("link", "add", layout.device, "type", "veth", "peer", "name", "uplink", "netns", name)
    _ip("address", "replace", f"{layout.host_address}/24", "dev", layout.device)
    _ip("link", "set", layout.device, "up")
    for address in (layout.shared_address, *(layout.cloud(cloud).address for cloud in CLOUDS)):
        _ip("-n", name, "address", "replace", f"{address}/24", "dev", "uplink")
    _ip("-n", name, "link", "set", "uplink", "up")
    _ip("-n", name, "route", "replace", "default", "via", layout.host_address)
    subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    _ip("route", "replace", f"{layout.guest_prefix}.0/24", "via", layout.shared_address)


def remove(layout: OpenStackLayout) -> None:
    """Remove the namespace with every device in it; absent is fine."""
    if Path("/sys/class/net", layout.device).exists():
        _ip("link", "del", layout.device, check=False)
    if Path("/run/netns", layout.namespace).exists():
        _ip("netns", "del", layout.namespace)
    shutil.rmtree(_etc(layout), ignore_errors=True)
    with contextlib.suppress(OSError):  # other namespaces have theirs
        _etc(layout).parent.rmdir()
