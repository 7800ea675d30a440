"""A lab guest: created on one cloud, and still the same guest after it was migrated to another.

Console and command channel have the same paths on every cloud; only power and definition need to know which cloud.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from labs.kvm import channel, processes, storage
from labs.kvm import cloud as daemon
from labs.kvm.domain import GuestSpec, domain_xml
from labs.kvm.errors import LabError
from labs.kvm.initramfs import ensure_boot_files
from labs.kvm.layout import LabLayout
from labs.kvm.records import ImageRecords, Record, parse_console, read_image

POLL_S = 0.1
BOOT_TIMEOUT_S = 240
STOP_TIMEOUT_S = 120


class LabGuest:
    """Handle of the guest ``name``; holds no connection and no state, everything is read when asked."""

    def __init__(self, layout: LabLayout, name: str) -> None:
        self._layout = layout
        self.name = name
        self.console_log = layout.guest_dir(name) / "console.log"
        self.socket = layout.guest_socket(name)

    # --- definition and power --------------------------------------------------------------------------------------

    def create(self, spec: GuestSpec, cloud: str, *, pool: str = "default") -> None:
        """Create the volumes and define the domain on ``cloud``. Running it again changes nothing."""
        self.console_log.parent.mkdir(parents=True, exist_ok=True)
        with self._connection(cloud) as connection:
            volumes = [
                storage.ensure_volume(connection, pool, spec.volume_name(target), disk.format, disk.size_bytes)
                for disk, target in zip(spec.disks, spec.targets(), strict=True)
            ]
            if self._find(connection) is None:
                boot = ensure_boot_files()
                connection.defineXML(domain_xml(spec, boot, volumes, self.console_log, self.socket))

    def start(self, cloud: str = "a", *, wait: bool = True) -> None:
        """Power on; with ``wait``, return when the guest answers. A running guest is fine."""
        with self._domain(cloud) as domain:
            if not domain.isActive():
                domain.create()
        if wait:
            self.command("ping", timeout_s=BOOT_TIMEOUT_S)

    def shutdown(self, cloud: str = "a", *, timeout_s: float = STOP_TIMEOUT_S) -> float:
        """Press the power button and wait for power off; return the seconds it took.

        Raises LabError when the guest still runs after ``timeout_s``.
        """
        begin = time.monotonic()
        with self._domain(cloud) as domain:
            if domain.isActive():
                domain.shutdown()
            while domain.isActive():
                if time.monotonic() - begin > timeout_s:
                    raise LabError(f"guest {self.name} did not power off in {timeout_s} s; see {self.console_log}")
                time.sleep(POLL_S)
        return time.monotonic() - begin

    def destroy(self, cloud: str = "a") -> None:
        """Cut the power. A guest that is off, or not defined there, is fine."""
        with self._connection(cloud) as connection:
            domain = self._find(connection)
            if domain is not None and domain.isActive():
                domain.destroy()

    def is_running(self, cloud: str = "a") -> bool:
        """Tell whether the guest is defined and runs on ``cloud``."""
        with self._connection(cloud) as connection:
            domain = self._find(connection)
            return domain is not None and bool(domain.isActive())

    def is_defined(self, cloud: str = "a") -> bool:
        """Tell whether ``cloud`` knows the guest."""
        with self._connection(cloud) as connection:
            return self._find(connection) is not None

    def pid(self, cloud: str = "a") -> int | None:
        """Return the pid of the guest's QEMU on ``cloud``, read without the daemon, or None."""
        return processes.guest_pid(self._layout.cloud(cloud), self.name)

    def kill_qemu(self, cloud: str = "a") -> int:
        """Kill the guest's QEMU with SIGKILL, as a host crash would; return the dead pid."""
        one = self._layout.cloud(cloud)
        pid = self.pid(cloud)
        if pid is None or not processes.send(one, pid, signal.SIGKILL):
            raise LabError(f"guest {self.name} does not run on cloud {cloud}")
        processes.wait_gone([pid], 30)
        return pid

    def remove(self, cloud: str = "a") -> None:
        """Destroy, undefine with all checkpoints, and delete the volumes and the console log. Absent is fine."""
        with self._connection(cloud) as connection:
            domain = self._find(connection)
            if domain is not None:
                paths = _disk_paths(domain)
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(
                    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                )
                for path in paths.values():
                    with contextlib.suppress(NotADirectoryError):  # a disk that was handed to another cloud
                        path.unlink(missing_ok=True)
        shutil.rmtree(self.console_log.parent, ignore_errors=True)

    def disk_paths(self, cloud: str = "a") -> dict[str, Path]:
        """Return target name -> image path of the guest's disks as defined on ``cloud``."""
        with self._domain(cloud) as domain:
            return _disk_paths(domain)

    # --- what the guest says ---------------------------------------------------------------------------------------

    def command(self, text: str, *, timeout_s: float = channel.PATIENCE_S) -> str:
        """Run a command in the guest (see docs/labs.md) and return its reply."""
        return channel.command(self.socket, text, timeout_s)

    def ping(self, *, timeout_s: float = channel.PATIENCE_S) -> None:
        """Wait until the guest answers. Raises LabError."""
        self.command("ping", timeout_s=timeout_s)

    def hash(self, disk: str = "vda", offset: int | None = None, length: int | None = None) -> str:
        """Return the sha256 the guest itself computes of a disk, or of a range of it (multiples of 4096 bytes).

        The whole disk takes about 0.1 s per MiB under TCG. Stop the writers first.
        """
        span = "" if offset is None or length is None else f" {offset} {length}"
        return self.command(f"hash {disk}{span}", timeout_s=600)

    def stop_writing(self) -> int:
        """Bring the guest's writers to rest and flush; return the number of the last record."""
        return int(self.command("stop-writing"))

    def start_writing(self) -> None:
        """Let the guest write again."""
        self.command("start-writing")

    def set_rate(self, records_per_s: int) -> None:
        """Change the rate of records."""
        self.command(f"rate {records_per_s}")

    def set_dirty_kib(self, kib_per_s: int) -> None:
        """Change the rate of random writes."""
        self.command(f"dirty-kib {kib_per_s}")

    def boot_count(self) -> int:
        """Return the guest's boot counter: 1 on the first boot."""
        return int(self.command("boot-count"))

    def last_record(self) -> int:
        """Return the number of the last record that is on disk; -1 before the first."""
        return int(self.command("last-record"))

    def console_text(self) -> str:
        """Return all that was ever printed on the serial console; "" before the first boot."""
        try:
            return self.console_log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_console(self, pattern: str, *, timeout_s: float = channel.PATIENCE_S, after: int = 0) -> re.Match[str]:
        """Wait until ``pattern`` matches console text from character ``after`` on; return the match."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.console_text()
            if match := re.compile(pattern, re.MULTILINE).search(text, after):
                return match
            if time.monotonic() > deadline:
                raise LabError(
                    f"{pattern!r} not on the console within {timeout_s} s: {self.console_log}\n{text[-800:]}"
                )
            time.sleep(POLL_S)

    def acknowledged(self) -> list[Record]:
        """Return the records the guest reported as written, from its console, in order of writing."""
        return parse_console(self.console_text())

    def records_on(self, cloud: str, disk: str = "vda") -> ImageRecords:
        """Read the records from the guest's disk image as defined on ``cloud``; the guest should be off or at rest."""
        return read_image(self.disk_paths(cloud)[disk])

    # --- inner -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connection(self, cloud: str) -> Iterator[libvirt.virConnect]:
        connection = daemon.connect(self._layout.cloud(cloud))
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _domain(self, cloud: str) -> Iterator[libvirt.virDomain]:
        with self._connection(cloud) as connection:
            domain = self._find(connection)
            if domain is None:
                raise LabError(f"guest {self.name} is not defined on cloud {cloud}")
            yield domain

    def _find(self, connection: libvirt.virConnect) -> libvirt.virDomain | None:
        try:
            return connection.lookupByName(self.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise


def _disk_paths(domain: libvirt.virDomain) -> dict[str, Path]:
    paths = {}
    for disk in ET.fromstring(domain.XMLDesc()).iterfind("./devices/disk[@device='disk']"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file"):
            paths[str(target.get("dev"))] = Path(str(source.get("file")))
    return paths
