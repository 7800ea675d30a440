"""A guest with a small agent: Debian's kernel, busybox, and a script that speaks the agent's protocol in the guest.

libvirt, QEMU, the virtio port and its driver in the guest are real; what stands in is ``qemu-ga`` itself.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from xml.etree import ElementTree as ET

from whimbrel.moverimage.cpio import archive
from whimbrel.moverimage.debian import BUSYBOX, load_order, modules_of, newest_kernel

INIT = Path(__file__).with_name("agent-init.sh")
MODULES = ("virtio_pci", "virtio_console")
MEMORY_MIB = "128"


def write_initramfs(path: Path) -> None:
    """The guest's user space as a compressed archive."""
    order = load_order(modules_of(newest_kernel()), MODULES)
    entries = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "proc", "sys")]
    entries += [("init", 0o100755, INIT.read_bytes()), ("bin/busybox", 0o100755, BUSYBOX.read_bytes())]
    entries += [(f"lib/{module.name}", 0o100644, module.read_bytes()) for module in order]
    entries.append(("lib/agent.order", 0o100644, "".join(f"{module.name}\n" for module in order).encode()))
    path.write_bytes(gzip.compress(archive(entries), compresslevel=1))


def with_agent(definition: str, initramfs: Path, console: Path, *, hostname: str, mute: bool = False) -> str:
    """The VM's definition with this guest in it, the agent's channel, and its console in a file."""
    domain = ET.fromstring(definition)
    for name in ("memory", "currentMemory"):
        node = domain.find(name)
        if node is not None:
            node.set("unit", "MiB")
            node.text = MEMORY_MIB
    boot = domain.find("os")
    devices = domain.find("devices")
    assert boot is not None
    assert devices is not None
    ET.SubElement(boot, "kernel").text = str(newest_kernel())
    ET.SubElement(boot, "initrd").text = str(initramfs)
    ET.SubElement(boot, "cmdline").text = f"console=ttyS0 quiet panic=1 agent.host={hostname} agent.mute={int(mute)}"
    for node in [*devices.findall("serial"), *devices.findall("console")]:
        devices.remove(node)
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(console), append="on")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    return ET.tostring(domain, encoding="unicode")
