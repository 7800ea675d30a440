"""Two clouds of the KVM lab and their pool "shared"."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from drivers.libvirt import LibvirtCloud
from labs.kvm import KvmLab
from tests.contract.libvirt_harness import COMPAT, LETTERS, _remove
from whimbrel.model.vm import DiskFormat
from whimbrel.ports.cloud import Cloud


class LibvirtSharing:
    """Implements tests.contract.sharing_harness.SharingHarness. VMs are bare: firmware that finds nothing to boot."""

    pool = "shared"
    apart = "default"

    def __init__(self, lab: KvmLab, **options: Any) -> None:
        self._lab = lab
        self.network = "lab" if lab.has_network("a") and lab.has_network("b") else "user"
        self.work = lab.scratch_dir("a") / f"h-{secrets.token_hex(4)}"
        self.work.mkdir()
        self._options: dict[str, Any] = {"runtime_dir": str(self.work), **options}
        self._clouds: list[LibvirtCloud] = []
        self._before = {name: self._domains(name) for name in ("a", "b")}
        self._files = set(lab.pool_path("a", self.pool).iterdir())
        self.source: Cloud = self.open("a")
        self.target: Cloud = self.open("b")

    def open(self, cloud: str) -> LibvirtCloud:
        """The driver on a cloud of the lab."""
        made = LibvirtCloud(cloud, uri=self._lab.uri(cloud), **self._options)
        self._clouds.append(made)
        return made

    def fresh(self, cloud: Cloud) -> Cloud:
        return self.open(cloud.name)

    def _domains(self, cloud: str) -> set[str]:
        connection = self._lab.connect(cloud)
        try:
            return {domain.name() for domain in connection.listAllDomains()}
        finally:
            connection.close()

    def end(self) -> None:
        """Remove what the test has left."""
        for cloud in ("a", "b"):
            connection = self._lab.connect(cloud)
            for domain in connection.listAllDomains():
                if domain.name() not in self._before[cloud]:
                    _remove(domain)
            connection.close()
        for path in set(self._lab.pool_path("a", self.pool).iterdir()) - self._files:
            path.unlink(missing_ok=True)
        for made in self._clouds:
            made.close()
        for path in self.work.iterdir():
            path.unlink()
        self.work.rmdir()

    def make_vm(self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False) -> str:
        vm = f"shared-{secrets.token_hex(4)}"
        connection = self._lab.connect("a")
        pool = connection.storagePoolLookupByName(self.pool)
        devices = ""
        for index, (size, form) in enumerate(disks):
            volume = pool.createXML(
                f"<volume><name>{vm}-vd{LETTERS[index]}.{form}</name><capacity>{size}</capacity>"
                f"<allocation>0</allocation><target><format type='{form}'/>{COMPAT[form]}</target></volume>"
            )
            devices += (
                f"<disk type='file' device='disk'><driver name='qemu' type='{form}' cache='none'/>"
                f"<source file='{volume.path()}'/><target dev='vd{LETTERS[index]}' bus='virtio'/>"
                f"<serial>disk-{index}</serial></disk>"
            )
        plug = f"<interface type='network'><source network='{self.network}'/>"
        if self.network == "user":
            plug = "<interface type='user'>"
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        domain = connection.defineXML(
            f"<domain type='qemu'><name>{vm}</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>"
            f"hvm</type></os><features><acpi/></features><devices>{devices}{plug}<mac address='{mac}'/>"
            f"<model type='virtio'/></interface><graphics type='vnc' passwd='hidden'/><memballoon model='none'/>"
            f"<controller type='usb' model='none'/></devices></domain>"
        )
        if running:
            domain.create()
        ref = str(domain.UUIDString())
        connection.close()
        return ref

    def secret_definition(self, ref: str) -> str:
        """A VM's whole definition at the source, graphics password too."""
        connection = self._lab.connect("a")
        try:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            return str(connection.lookupByUUIDString(ref).XMLDesc(flags))
        finally:
            connection.close()

    def write(self, ref: str, disk: str, data: bytes) -> None:
        location = self.source.compute.inspect(ref).disk(disk).location
        pattern = self.work / "pattern"
        pattern.write_bytes(data.ljust(-len(data) % 512 + len(data), b"\0"))
        form = "raw" if location.endswith(".raw") else "qcow2"
        command = f"write -s {pattern} 0 {pattern.stat().st_size}"
        subprocess.run(["qemu-io", "-f", form, "-c", command, location], check=True, capture_output=True)
        pattern.unlink()

    def read(self, cloud: Cloud, location: str, form: DiskFormat) -> bytes:
        del cloud
        out = self.work / "content"
        subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", location, str(out)], check=True)
        content = out.read_bytes()
        out.unlink()
        return content

    def force_start(self, cloud: Cloud, ref: str) -> bool:
        connection = self._lab.connect(cloud.name)
        try:
            domain = connection.lookupByUUIDString(ref)
            try:
                domain.create()
            except libvirt.libvirtError:
                return False
            return bool(domain.isActive())
        finally:
            connection.close()

    @contextmanager
    def opened_by_a_stranger(self, location: str, form: DiskFormat) -> Iterator[None]:
        """A qemu-nbd, which no daemon knows of."""
        socket = self.work / "stranger.sock"
        command = ["qemu-nbd", "--persistent", "-f", form, "-k", str(socket), location]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 90
            while not Path(socket).exists():
                assert process.poll() is None, "qemu-nbd did not start"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)
            socket.unlink(missing_ok=True)
