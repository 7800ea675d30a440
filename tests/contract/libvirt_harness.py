"""The contract harness of the libvirt driver, on one cloud of the KVM lab."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from drivers.libvirt import LibvirtCloud
from labs.kvm import KvmLab
from tests.contract import agent_guest
from tests.contract.harness import Lack
from whimbrel.model.vm import DiskFormat, VolumeRef
from whimbrel.ports.cloud import Cloud

COMPAT = {"qcow2": "<compat>1.1</compat>", "qcow2-v2": "<compat>0.10</compat>", "raw": ""}
LETTERS = "abcdefgh"


class LibvirtHarness:
    """Implements tests.contract.harness.Harness. VMs are bare: firmware that finds nothing to boot."""

    pool = "default"
    lacks = frozenset({Lack.GUEST_STOPS, Lack.SAME_NAMES, Lack.COLD_TOKENS})

    def __init__(self, lab: KvmLab, cloud: str = "a", *, uri: str | None = None, **options: Any) -> None:
        self._lab = lab
        self._uri = uri or lab.uri(cloud)
        self._cloud = cloud
        self._clouds: list[LibvirtCloud] = []
        self.network = "lab" if lab.has_network(cloud) else "user"
        self.work = lab.scratch_dir(cloud) / f"w-{secrets.token_hex(4)}"
        self.work.mkdir()
        self._options: dict[str, Any] = {"runtime_dir": str(self.work), **options}
        self.conn = lab.connect(cloud)
        self._before = {domain.name() for domain in self.conn.listAllDomains()}
        self._volumes_before = {path.name for path in lab.pool_path(cloud).iterdir()}
        self.cloud: Cloud = self.fresh_cloud()

    def fresh_cloud(self) -> LibvirtCloud:
        made = LibvirtCloud("lab", uri=self._uri, **self._options)
        self._clouds.append(made)
        return made

    def end(self) -> None:
        """Remove what the test has left."""
        self._reconnect()
        for domain in self.conn.listAllDomains():
            if domain.name() not in self._before:
                _remove(domain)
        for path in self._lab.pool_path(self._cloud).iterdir():
            if path.name not in self._volumes_before:
                path.unlink(missing_ok=True)
        self.conn.storagePoolLookupByName(self.pool).refresh()
        for cloud in self._clouds:
            cloud.close()
        for path in self.work.iterdir():
            path.unlink()
        self.work.rmdir()
        self.conn.close()

    def files(self) -> set[str]:
        """Names of files in the pool that were not there before the test."""
        return {path.name for path in self._lab.pool_path(self._cloud).iterdir()} - self._volumes_before

    # --- VMs

    def make_vm(
        self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False, name: str | None = None
    ) -> str:
        vm = name or f"bare-{secrets.token_hex(4)}"
        pool = self.conn.storagePoolLookupByName(self.pool)
        devices = ""
        for index, (size, form) in enumerate(disks):
            kind = "qcow2" if form.startswith("qcow2") else "raw"
            volume = pool.createXML(
                f"<volume><name>{vm}-vd{LETTERS[index]}.{kind}</name><capacity>{size}</capacity>"
                f"<allocation>0</allocation><target><format type='{kind}'/>{COMPAT[form]}</target></volume>"
            )
            devices += (
                f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{volume.path()}'/>"
                f"<target dev='vd{LETTERS[index]}' bus='virtio'/></disk>"
            )
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        plug = "<interface type='user'>"
        if self.network != "user":
            plug = f"<interface type='network'><source network='{self.network}'/>"
        domain = self.conn.defineXML(
            f"<domain type='qemu'><name>{vm}</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>"
            f"hvm</type></os><features><acpi/></features><devices>{devices}{plug}<mac address='{mac}'/>"
            f"<model type='virtio'/></interface><memballoon model='none'/><controller type='usb' model='none'/>"
            f"</devices></domain>"
        )
        if running:
            domain.create()
        return str(domain.UUIDString())

    def domain(self, ref: str) -> Any:
        """The libvirt object of a VM, over a connection that works."""
        self._reconnect()
        return self.conn.lookupByUUIDString(ref)

    def _reconnect(self) -> None:
        """Tests kill the daemon; without an event loop isAlive() does not notice, a call does."""
        try:
            self.conn.getLibVersion()
        except libvirt.libvirtError:
            self.conn = self._lab.connect(self._cloud)

    def start_by_hand(self, ref: str) -> bool:
        domain = self.domain(ref)
        with suppress(libvirt.libvirtError):
            domain.create()
        return bool(domain.isActive())

    def remove_vm(self, ref: str) -> None:
        domain = self.domain(ref)
        paths = [self._path(domain, disk) for disk in self._disks(domain)]
        _remove(domain)
        for path in paths:
            Path(path).unlink(missing_ok=True)
        self.conn.storagePoolLookupByName(self.pool).refresh()

    # --- bytes

    def guest_write(self, ref: str, disk: str, offset: int, data: bytes) -> None:
        domain = self.domain(ref)
        pattern = self.work / f"{secrets.token_hex(4)}.bin"
        pattern.write_bytes(data)
        self._qemu_io(domain, disk, f"write -s {pattern} {offset} {len(data)}")
        pattern.unlink()

    def _qemu_io(self, domain: Any, disk: str, command: str) -> None:
        xml = ET.fromstring(domain.XMLDesc())
        alias = next(
            str(node.find("alias").get("name"))  # type: ignore[union-attr]
            for node in xml.findall("devices/disk")
            if node.find("target").get("dev") == disk  # type: ignore[union-attr]
        )
        asked = {"execute": "query-block"}
        devices = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(asked), 0))["return"]
        qdev = next(device["qdev"] for device in devices if alias in device.get("qdev", ""))
        line = {"command-line": f'qemu-io -d {qdev} "{command}"'}
        run = {"execute": "human-monitor-command", "arguments": line}
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(run), 0))
        assert answer.get("return") == "", answer

    def read_disk(self, ref: str, disk: str) -> bytes:
        domain = self.domain(ref)
        if domain.isActive():
            self._qemu_io(domain, disk, "flush")
        path = self._path(domain, disk)
        return self._read(path, "raw" if path.endswith(".raw") else "qcow2")

    def read_volume(self, volume: VolumeRef) -> bytes:
        return self._read(volume.location, "raw" if volume.format == "raw" else "qcow2")

    def _read(self, path: str, form: str) -> bytes:
        out = self.work / f"{secrets.token_hex(4)}.raw"
        subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", path, str(out)], check=True)
        content = out.read_bytes()
        out.unlink()
        return content

    @staticmethod
    def _disks(domain: Any) -> list[str]:
        return [str(node.get("dev")) for node in ET.fromstring(domain.XMLDesc()).findall("devices/disk/target")]

    @staticmethod
    def _path(domain: Any, disk: str) -> str:
        for node in ET.fromstring(domain.XMLDesc()).findall("devices/disk"):
            target, source = node.find("target"), node.find("source")
            if target is not None and source is not None and target.get("dev") == disk:
                return str(source.get("file"))
        raise KeyError(disk)

    # --- tracking

    def add_foreign_token(self, ref: str) -> str:
        name = f"other-tool-{secrets.token_hex(3)}"
        self.domain(ref).checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")
        return name

    def foreign_tokens(self, ref: str) -> Collection[str]:
        domain = self.domain(ref)
        named = {checkpoint.getName() for checkpoint in domain.listAllCheckpoints()}
        whole = set.intersection(*(self.bitmaps(ref, disk) for disk in self._disks(domain)))
        return {name for name in named & whole if not name.startswith("whimbrel-")}

    def bitmaps(self, ref: str, disk: str) -> set[str]:
        """Names of bitmaps on a disk that are not damaged, as QEMU or the image itself tells."""
        domain = self.domain(ref)
        path = self._path(domain, disk)
        if domain.isActive():
            asked = {"execute": "query-named-block-nodes", "arguments": {"flat": True}}
            nodes = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(asked), 0))["return"]
            return {
                bitmap["name"]
                for node in nodes
                if node["file"] == path and node["drv"] == "qcow2"
                for bitmap in node.get("dirty-bitmaps", [])
                if bitmap.get("name") and not bitmap.get("inconsistent")
            }
        told = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", path], check=True, capture_output=True, text=True
        )
        data = json.loads(told.stdout).get("format-specific", {}).get("data", {})
        return {bitmap["name"] for bitmap in data.get("bitmaps", []) if "in-use" not in bitmap["flags"]}

    def damage_tracking(self, ref: str) -> None:
        self.kill_qemu(ref)

    def kill_qemu(self, ref: str) -> None:
        """SIGKILL to the VM's QEMU; returns when libvirt has noticed."""
        domain = self.domain(ref)
        pid = int((self._lab.cloud(self._cloud).run / "qemu" / f"{domain.name()}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while domain.isActive():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @contextmanager
    def foreign_job(self, ref: str) -> Iterator[None]:
        domain = self.domain(ref)
        socket, scratch = self.work / "foreign.sock", self.work / "foreign.scratch"
        domain.backupBegin(
            f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks><disk name='vda' "
            f"backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>",
            None,
        )
        try:
            yield
            assert domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
        finally:
            domain.abortJob()
            socket.unlink(missing_ok=True)

    def set_agent(self, ref: str, *, hostname: str, mute: bool = False) -> None:
        """Start the VM anew with a guest that has an agent; returns when the agent has opened its port."""
        domain = self.domain(ref)
        initramfs, console = self.work / "agent.cpio.gz", self.work / "agent-console.log"
        agent_guest.write_initramfs(initramfs)
        domain.destroy()
        definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        made = agent_guest.with_agent(definition, initramfs, console, hostname=hostname, mute=mute)
        self.conn.defineXML(made).create()
        deadline = time.monotonic() + 240
        while not console.exists() or b"AGENT UP" not in console.read_bytes():
            assert time.monotonic() < deadline, console.read_bytes()[-2000:] if console.exists() else "no console"
            time.sleep(0.2)


def _remove(domain: Any) -> None:
    with suppress(libvirt.libvirtError):
        domain.destroy()
    with suppress(libvirt.libvirtError):
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        )
