"""One guest and its migration: how it is set up, and what must be true of it in the end."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from labs.kvm import DiskSpec, GuestSpec, LabGuest
from labs.kvm.accel import virt_type
from labs.kvm.records import BLOCK_BYTES, RECORDS_OFFSET, Record, parse_console, read_image
from labs.stage import CLOUD_NAMES, Stage
from tests.e2e.images import MIB, content_bytes, differing_blocks, fill
from tests.e2e.installation import Installation
from tests.e2e.remains import leftovers, shared_files
from tests.e2e.running import PATIENCE_S, Running
from whimbrel.dataplane.header import ManifestCorrupt, read_header
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport, Phase
from whimbrel.stream.config import read_config
from whimbrel.stream.launch import stop

DATA_OFFSET = 32 * MIB
"""Behind the records and the hot area."""
SLOTS = 2048
FIRST_SLOT = RECORDS_OFFSET // BLOCK_BYTES


@dataclass(frozen=True)
class Boot:
    """One boot of the guest as its console tells it, wherever it ran."""

    number: int
    records: tuple[Record, ...]


class Scene:
    """Made anew for every test; ``close`` removes all traces, also those of a test that failed."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.installation = installation
        self.stage: Stage = installation.stage
        self.guest: LabGuest = self.stage.lab.guest(f"{name}-{secrets.token_hex(3)}")
        self.running: list[Running] = []
        self._definition = ""
        self._shared = shared_files(self.stage)

    # -- set up -------------------------------------------------------------------------------------------------

    def boot(
        self,
        *formats: str,
        size_mib: int = 64,
        data_mib: int = 24,
        dirty_kib: int = 256,
        autostart: bool = False,
        pool: str = "default",
        **spec: Any,
    ) -> None:
        """A guest on cloud a with data on its first disk, writing records and, in this boot only, random blocks."""
        disks = tuple(DiskSpec(size_bytes=size_mib * MIB, format=form) for form in formats or ("qcow2",))  # type: ignore[arg-type]
        lab = self.stage.lab
        network = "lab" if lab.has_network("a") and lab.has_network("b") else None
        lab.create_guest(
            GuestSpec(name=self.guest.name, disks=disks, network=network, virt_type=virt_type(), slots=SLOTS, **spec),
            "a",
            pool=pool,
        )
        fill(self.guest.disk_paths("a")["vda"], disks[0].format, DATA_OFFSET, data_mib * MIB)
        if autostart:
            with_domain(self.stage, "a", self.guest.name, lambda domain: domain.setAutostart(1))
        self.guest.start("a")
        self.guest.set_dirty_kib(dirty_kib)
        self.guest.wait_console(r"WBREC1 kind=run boot=1 n=2 ")
        self._definition = definition(self.stage, self.guest.name)

    def plan(self, mode: str = "incremental", **changes: Any) -> VmPlan:
        """A plan from a to b with quick rounds, waiting at the confirm gate."""
        base: dict[str, Any] = {
            "plan": "e2e",
            "vm": self.guest.name,
            "mode": mode,
            "source": CLOUD_NAMES["a"],
            "target": CLOUD_NAMES["b"],
            "networks": {"*": "lab", "user": "user"},
            "storage": {"*": "default"},
            "rounds": {"outage_budget_s": 120.0, "min_interval_s": 0.5, "max_interval_s": 2.0},
            "stop": {"graceful_timeout_s": 60.0},
            "health": {"checks": [{"kind": "console", "pattern": "WBREC1 kind=run"}], "timeout_s": 120.0},
        }
        return changed(base, changes)

    def migrate(self, mode: str = "incremental", **changes: Any) -> Running:
        """Start a migration by ``plan``."""
        plan = self.plan(mode, **changes)
        running = Running(self.installation, plan, self.installation.start(plan))
        self.running.append(running)
        return running

    # -- looking ------------------------------------------------------------------------------------------------

    def boots(self) -> list[Boot]:
        """Every boot of the guest in order of time, each with the records it acknowledged.

        A line that a crash cut short ends a boot without a newline and is no acknowledgement.
        """
        parts = re.split(r"WB UP boot=(\d+)", self.guest.console_text())
        return [
            Boot(int(number), tuple(parse_console(text))) for number, text in zip(parts[1::2], parts[2::2], strict=True)
        ]

    def wait_boots(self, count: int, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the guest has booted so many times in all and written since."""
        deadline = time.monotonic() + timeout_s
        while True:
            boots = self.boots()
            if len(boots) >= count and len(boots[count - 1].records) >= 2:
                return
            assert time.monotonic() < deadline, f"{len(boots)} boots, not {count}: {self.guest.console_text()[-600:]}"
            time.sleep(0.1)

    def crash(self) -> None:
        """Kill the source's QEMU; returns when its daemon knows."""
        self.guest.kill_qemu("a")
        deadline = time.monotonic() + PATIENCE_S
        while self.guest.is_running("a"):
            assert time.monotonic() < deadline, "libvirtd did not notice"
            time.sleep(0.05)

    def start_again(self) -> None:
        """Start the source; a round that reads the disks of the stopped VM holds them for a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.guest.start("a")
                return
            except libvirt.libvirtError as error:
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait_records(self, boot: int, count: int, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the newest boot is of this number and has acknowledged so many records."""
        deadline = time.monotonic() + timeout_s
        while True:
            newest = self.boots()[-1]
            if newest.number == boot and len(newest.records) >= count:
                return
            assert time.monotonic() < deadline, f"boot {newest.number} has written {len(newest.records)} records"
            time.sleep(0.1)

    def autostart(self) -> bool:
        """Whether the source starts with its host."""
        return bool(with_domain(self.stage, "a", self.guest.name, lambda domain: domain.autostart()))

    def target_images(self, running: Running) -> list[Path]:
        """The migration's volumes on cloud b, as files."""
        places = [self.stage.lab.pool_path("b", pool) for pool in ("default", "small")]
        return sorted(path for place in places for path in place.iterdir() if path.name.endswith(running.migration))

    def wait_copied(self, running: Running, at_least_bytes: int, *, timeout_s: float = PATIENCE_S) -> int:
        """Wait until a copy runs and so much is allocated in the target's images (the precheck makes some too)."""
        running.until(lambda now: now.phase in {Phase.BASELINE, Phase.CUTOVER}, "a copy", timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            held = sum(path.stat().st_blocks * 512 for path in self.target_images(running))
            if held >= at_least_bytes:
                return held
            assert time.monotonic() < deadline, f"{held} of {at_least_bytes} bytes are at the target"
            time.sleep(0.05)

    def cursor(self, running: Running, disk: str = "vda") -> int:
        """Where a copy would go on after a kill at this moment: the offset in the disk's manifest; 0 without one."""
        path = self.stage.directory / "state" / "manifests" / running.migration / f"{disk}.manifest"
        size = content_bytes(self.guest.disk_paths("a")[disk])
        try:
            with path.open("rb") as manifest:
                return read_header(manifest.fileno(), str(path), size).cursor_bytes
        except (FileNotFoundError, ManifestCorrupt):
            return 0

    def wait_cursor(self, running: Running, at_least: int, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a copy is durable up to this offset."""
        running.until(lambda now: now.phase is Phase.BASELINE, "the baseline", timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while (reached := self.cursor(running)) < at_least:
            assert time.monotonic() < deadline, f"the copy is durable up to {reached}, not {at_least}"
            time.sleep(0.05)

    # -- what must be true in the end ---------------------------------------------------------------------------

    def confirm(self, running: Running, *, timeout_s: float = PATIENCE_S) -> MigrationReport:
        """Wait for the gate, see the target write, confirm; the report."""
        running.phase(Phase.CONFIRM, timeout_s=timeout_s)
        running.say("confirm")
        return running.report()

    def moved(self, running: Running, report: MigrationReport, *, boot: int = 2) -> None:
        """The VM lives on b with every byte and every acknowledged record; a is off and intact; nothing is left.

        ``boot`` is the number of the target's first boot. Bytes may differ only where that boot wrote: in the block
        of the boot counter and in the slots of its records.
        """
        assert report.outcome == "completed", report.reason
        assert report.leftovers == ()
        guest = self.guest
        self.wait_boots(boot)
        assert [one.number for one in self.boots()] == list(range(1, boot + 1))
        assert guest.is_defined("a")
        assert not guest.is_running("a")
        assert definition(self.stage, guest.name) == self._definition
        assert guest.is_running("b")
        guest.stop_writing()
        guest.destroy("b")
        source, target = guest.disk_paths("a"), guest.disk_paths("b")
        assert source.keys() == target.keys()
        acknowledged = [record for one in self.boots() for record in one.records]
        for disk, image in target.items():
            held = read_image(image)
            assert held.boots == boot
            assert held.lost(acknowledged) == []
            assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
            written = {FIRST_SLOT + record.n % SLOTS for record in held.records if record.boot >= boot}
            assert differing_blocks(source[disk], image) <= {0} | written
            assert read_image(source[disk]).boots == boot - 1
        verified = {record.disk: record for record in report.status.verify}
        assert verified.keys() == target.keys()
        assert all(record.mode == "full" and record.mismatches == 0 for record in verified.values())
        assert all(record.compared_bytes > 0 for record in verified.values())
        assert self.remains(running, {*target.values()}) == []

    def untouched(self, running: Running, report: MigrationReport, *, boots: int = 1) -> None:
        """The source runs as it was defined, its records are whole, and nothing of the migration is anywhere.

        ``boots`` is the boot that the source is in. What a target wrote in a boot of this number or a later one was
        given up with the target.
        """
        assert report.outcome == "rolled_back", report.reason
        assert report.leftovers == ()
        guest = self.guest
        assert not guest.is_defined("b")
        assert definition(self.stage, guest.name) == self._definition
        assert guest.is_running("a")
        assert guest.boot_count() == boots
        last = guest.last_record()
        deadline = time.monotonic() + PATIENCE_S
        while guest.last_record() == last:
            assert time.monotonic() < deadline, "the source does not write any more"
            time.sleep(0.1)
        guest.stop_writing()
        found = self.boots()
        assert found[-1].number == boots
        kept = [*(one for one in found[:-1] if one.number < boots), found[-1]]
        assert [one.number for one in kept] == list(range(1, boots + 1))
        acknowledged = [record for one in kept for record in one.records]
        for disk in guest.disk_paths("a"):
            held = guest.records_on("a", disk)
            assert held.boots == boots
            assert held.lost(acknowledged) == []
            assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
        assert self.remains(running, set()) == []

    def remains(self, running: Running, allowed: set[Path]) -> list[str]:
        """``leftovers`` of this scene; what lay in shared directories before is no business of ours."""
        return leftovers(self.stage, self.guest, running.migration, allowed=allowed | self._shared)

    # -- taking down --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the guest and whatever a failed test left of its migrations."""
        self.installation.make_whole()
        for running in self.running:
            _end(running)
            _end_servers(self.stage, running)
        for cloud in CLOUD_NAMES:
            _remove_sessions(self.stage, cloud, self.running)
            self.guest.remove(cloud)
        for running in self.running:
            for path in self.target_images(running):
                path.unlink(missing_ok=True)


def changed(base: dict[str, Any], changes: dict[str, Any]) -> VmPlan:
    """A plan of ``base`` with ``changes``; those of a section replace only what they name."""
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return VmPlan.model_validate(base)


def _end(running: Running) -> None:
    description = running.installation.run(running.handle.describe())
    if description.status is not None and description.status.name == "RUNNING":
        running.installation.run(running.handle.terminate("the test is over"))


def _end_servers(stage: Stage, running: Running) -> None:
    """Streaming servers outlive their migration's workflow by design."""
    for config in (stage.directory / "state" / "streams").glob(f"{running._migration}/*.json"):
        stop(Path(read_config(config).control_path), config_path=config)


def _remove_sessions(stage: Stage, cloud: str, running: list[Running]) -> None:
    ids = [one._migration for one in running if one._migration is not None]
    connection = stage.lab.connect(cloud)
    try:
        for domain in connection.listAllDomains():
            if any(migration in domain.name() for migration in ids):
                domain.destroy()
    finally:
        connection.close()


def definition(stage: Stage, name: str, cloud: str = "a") -> str:
    """The domain's stored definition, whole."""
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    return str(with_domain(stage, cloud, name, lambda domain: domain.XMLDesc(flags)))


def with_domain(stage: Stage, cloud: str, name: str, work: Any) -> Any:
    """Do something with a domain over a connection of its own."""
    connection = stage.lab.connect(cloud)
    try:
        return work(connection.lookupByName(name))
    finally:
        connection.close()
