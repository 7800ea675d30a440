"""One guest and its migrations between clouds of any kind: how it is set up, and what must be true of it in the end."""

from __future__ import annotations

import random
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labs.kvm import DiskSpec, GuestSpec
from labs.kvm.accel import virt_type
from labs.kvm.records import ImageRecords
from labs.openstack.guest_image import ensure_image
from labs.openstack.server import boot as boot_server
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e.remains import leftovers, shared_files
from tests.e2e.running import PATIENCE_S, Running
from tests.e2e.scene import changed
from tests.e2e_openstack import images
from tests.e2e_openstack.consoles import Boot, Consoles
from tests.e2e_openstack.images import MIB, SLOTS
from tests.e2e_openstack.kvm_site import KvmSite
from tests.e2e_openstack.nova_site import NovaSite, until
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import MigrationReport, Phase

Site = NovaSite | KvmSite


class Scene:
    """Made anew for every test; ``close`` removes all traces, also those of a test that failed.

    ``source`` and ``target`` are one cloud each, of any kind; by default the first and the last OpenStack cloud.
    """

    def __init__(
        self, installation: Installation, name: str, *, source: Site | None = None, target: Site | None = None
    ) -> None:
        self.installation = installation
        assert isinstance(installation.stage, OpenStackStage)
        self.stage: OpenStackStage = installation.stage
        self.source: Site = source or NovaSite(self.stage.openstack.cloud("a"))
        self.target: Site = target or NovaSite(self.stage.openstack.cloud(self.stage.openstack.names[-1]))
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.running: list[Running] = []
        self.disks = 1
        self.same_length = True
        """Of the disks of both sides; a mover server leaves a volume in the whole GiB that Cinder made."""
        self.defined = ""
        """What the source was when it had been set up."""
        self._watched = [NovaSite(self.stage.openstack.cloud(one)) for one in self.stage.openstack.names]
        self._before = self._whole_clouds()
        self._shared = shared_files(self.stage)
        names = re.compile(re.escape(self.name) + r"(-[a-z]+)?")
        self.consoles = Consoles(
            lambda: {label: path for site in (self.source, self.target) for label, path in site.consoles(names).items()}
        )

    # -- set up -------------------------------------------------------------------------------------------------

    def boot(
        self,
        *,
        data_disks: int = 0,
        data_mib: int = 24,
        dirty_kib: int = 0,
        size_gib: int = 1,
        size_mib: int | None = None,
        shared: bool = False,
        beside: bytes = b"",
    ) -> None:
        """A guest at the source with data on its boot disk, writing records; in this boot also random blocks.

        ``beside`` lies on each of the ``data_disks``, at ``images.DATA_OFFSET``. With ``size_mib`` its volume in
        OpenStack says that it came with a disk of this size, as a migration leaves it.
        """
        self.disks = 1 + data_disks
        if isinstance(self.source, NovaSite):
            handle = self.source.handle

            def prepare(pool: str, image: str, number: int) -> None:
                disk = images.address(handle, pool, image)
                if number == 0:
                    images.fill(disk, "raw", images.DATA_OFFSET, data_mib * MIB)
                elif beside:
                    images.put(disk, "raw", images.DATA_OFFSET, beside)

            boot_server(
                handle,
                self.name,
                self._free_number(),
                shared=shared,
                size_gib=size_gib,
                data_disks=data_disks,
                prepare=prepare,
            )
        else:
            self._boot_in_kvm(self.source, data_mib)
        self.wait_records(1, 3)
        if dirty_kib:
            self.source.command(self.name, f"dirty-kib {dirty_kib}")
        if size_mib is not None and isinstance(self.source, NovaSite):
            for volume in self.source.volumes(self.name).values():
                size = {"whimbrel_size_bytes": str(size_mib * MIB)}
                self.source.api.block_storage.set_volume_metadata(volume.id, **size)
            self._before = self._whole_clouds()
        self.defined = self.source.definition(self.name)

    def _boot_in_kvm(self, site: KvmSite, data_mib: int) -> None:
        """The OpenStack lab's guest, which boots by itself, on a qcow2 disk of a KVM cloud."""
        layout = self.stage.openstack.layout
        lab, guest = self.stage.lab, site.guest(self.name)
        mac = self.stage.openstack.cloud(self.stage.openstack.names[-1]).address(self._free_number()).mac
        network = "lab" if lab.has_network(site.cloud) else None
        spec = GuestSpec(
            name=self.name,
            disks=(DiskSpec(size_bytes=192 * MIB, format="qcow2"),),
            memory_mib=160,
            network=network,
            mac=mac,
            virt_type=virt_type(),
            boots_itself=True,
        )
        lab.create_guest(spec, site.cloud)
        disk = guest.disk_paths(site.cloud)["vda"]
        images.overwrite(ensure_image(layout.guest_prefix), disk, "qcow2")
        images.fill(disk, "qcow2", images.DATA_OFFSET, data_mib * MIB)
        guest.start(site.cloud, wait=False)

    def _free_number(self) -> int:
        """An address that nobody has in either cloud."""
        taken = {port.mac_address[-2:] for site in self._watched for port in site.api.network.ports()}
        return random.choice([number for number in range(10, 99) if f"{number:02d}" not in taken])

    def plan(self, mode: str = "incremental", **changes: Any) -> VmPlan:
        """A plan from source to target with quick rounds, waiting at the confirm gate."""
        base: dict[str, Any] = {
            "plan": "e2e",
            "vm": self.name,
            "mode": mode,
            "source": self.source.plan_name,
            "target": self.target.plan_name,
            "networks": {"*": self.target.network, "user": "user"},
            "storage": {"*": self.target.storage},
            "disk_format": "raw",
            "rounds": {"outage_budget_s": 120.0, "min_interval_s": 0.5, "max_interval_s": 2.0},
            "stop": {"graceful_timeout_s": 60.0},
            "health": {"checks": [{"kind": "console", "pattern": "WBREC1 kind=run"}], "timeout_s": 180.0},
        }
        return changed(base, changes)

    def migrate(self, mode: str = "incremental", **changes: Any) -> Running:
        """Start a migration by ``plan``."""
        return self.start(self.plan(mode, **changes))

    def start(self, plan: VmPlan) -> Running:
        """Start this plan, which is one of ``plan`` perhaps with others beside it."""
        running = Running(self.installation, plan, self.installation.start(plan))
        self.running.append(running)
        return running

    # -- looking ------------------------------------------------------------------------------------------------

    def boots(self, vm: str | None = None) -> list[Boot]:
        """Every boot of the guest (or of the VM of another name) in order of time, wherever it ran."""
        return [boot for boot in self.consoles.boots() if boot.where.partition("/")[2] == (vm or self.name)]

    def wait_records(self, boot: int, count: int, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the newest boot is of this number and has acknowledged so many records."""

        def there() -> bool:
            boots = self.boots()
            return bool(boots) and boots[-1].number == boot and len(boots[-1].records) >= count

        until(there, f"{count} records of boot {boot}", timeout_s)

    # -- what must be true in the end ---------------------------------------------------------------------------

    def confirm(self, running: Running, *, timeout_s: float = 240) -> MigrationReport:
        """Wait for the gate, confirm; the report."""
        running.phase(Phase.CONFIRM, timeout_s=timeout_s)
        running.say("confirm")
        return running.report()

    def moved(
        self,
        running: Running,
        report: MigrationReport,
        *,
        boot: int = 2,
        last: int | None = None,
        compared: bool = True,
    ) -> None:
        """The VM lives at the target with every byte and every acknowledged record; the source is off and intact.

        ``boot`` is the number of the target's first boot, ``last`` of the one that it is in. Bytes may differ only
        where these boots wrote: in the block of the boot counter and in the slots of their records. Without
        ``compared`` the source has no disks of its own left.
        """
        last = last or boot
        assert report.outcome == "completed", report.reason
        assert report.leftovers == ()
        self.wait_records(last, 2)
        assert self.target.running(self.name)
        self.target.shut_down(self.name)
        boots = self.boots()
        assert [one.number for one in boots] == list(range(1, last + 1))
        assert boots[-1].where.startswith(self.target.plan_name)
        acknowledged = [record for one in boots for record in one.records]
        with tempfile.TemporaryDirectory(prefix="ose2e-") as directory:
            target = self.target.flatten(self.name, Path(directory))
            assert len(target) == self.disks
            for flat in target.values():
                held = images.records(flat)
                assert held.boots == last
                assert held.lost(acknowledged) == []
                assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
            if compared:
                self._same_bytes(Path(directory), target, boot)
                verified = {record.disk: record for record in report.status.verify}
                assert len(verified) == self.disks
                assert all(record.mode == "full" and record.mismatches == 0 for record in verified.values())
                assert all(record.compared_bytes > 0 for record in verified.values())
        assert self.remains(running, arrived=True) == []

    def _same_bytes(self, directory: Path, target: dict[str, Path], boot: int) -> None:
        assert self.source.exists(self.name)
        assert not self.source.running(self.name)
        assert self.source.definition(self.name) == self.defined
        source = self.source.flatten(self.name, directory)
        assert source.keys() == target.keys()
        for disk, flat in target.items():
            assert images.records(source[disk]).boots == boot - 1
            written = {
                images.FIRST_SLOT + record.n % SLOTS for record in images.records(flat).records if record.boot >= boot
            }
            differing = images.differing_blocks(source[disk], flat, same_length=self.same_length)
            assert differing <= {images.COUNTER_BLOCK} | written

    def untouched(self, running: Running, report: MigrationReport, *, boots: int = 1, same: bool = True) -> None:
        """The source runs as it was defined, its records are whole, and nothing of the migration is anywhere.

        ``boots`` is the boot that the source is in. What a target wrote in a boot of this number or a later one was
        given up with the target. With ``same`` False the source may be defined anew (other ids).
        """
        assert report.outcome == "rolled_back", report.reason
        assert report.leftovers == ()
        assert not self.target.exists(self.name)
        assert self.source.running(self.name)
        assert not same or self.source.definition(self.name) == self.defined
        found = self.writing(boots)
        kept = [*(one for one in found[:-1] if one.number < boots), found[-1]]
        assert [one.number for one in kept] == list(range(1, boots + 1))
        acknowledged = [record for one in kept for record in one.records]
        for held in self.at_rest():
            assert held.boots == boots
            assert held.lost(acknowledged) == []
            assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
        assert self.remains(running, arrived=False) == []

    def writing(self, boot: int) -> list[Boot]:
        """The source writes on in this boot; all boots, read when its writers were at rest."""
        self.wait_records(boot, 2)
        seen = len(self.boots()[-1].records)
        self.wait_records(boot, seen + 2)
        self.source.command(self.name, "stop-writing")
        time.sleep(0.5)
        return self.boots()

    def at_rest(self) -> list[ImageRecords]:
        """What lies on the disks of the source, whose writers are at rest."""
        with tempfile.TemporaryDirectory(prefix="ose2e-") as directory:
            return [images.records(flat) for flat in self.source.flatten(self.name, Path(directory)).values()]

    def remains(self, running: Running, *, arrived: bool) -> list[str]:
        """What was not there before, in both labs and in the worker's state; ``arrived``: the target VM stays."""
        new = sorted(self._whole_clouds(arrived=arrived) - self._before)
        allowed = set(self._shared)
        if arrived and isinstance(self.target, KvmSite):
            allowed |= set(self.target.guest(self.name).disk_paths(self.target.cloud).values())
        return new + leftovers(self.stage, self.stage.lab.guest(self.name), running.migration, allowed=allowed)

    def _whole_clouds(self, *, arrived: bool = False) -> set[str]:
        there = self.target.handle.name if isinstance(self.target, NovaSite) else None
        return {
            line
            for site in self._watched
            for line in site.remains(self.name if arrived and site.handle.name == there else None)
        }

    # -- taking down --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the guest and whatever a failed test left of its migrations."""
        self.installation.make_whole()
        self.consoles.close()
        for running in self.running:
            _end(running)
        for site in (self.source, self.target):
            site.remove(self.name)
        for site in (self.source, self.target, *self._watched):
            site.close()


def _end(running: Running) -> None:
    description = running.installation.run(running.handle.describe())
    if description.status is not None and description.status.name == "RUNNING":
        running.installation.run(running.handle.terminate("the test is over"))


SceneMaker = Callable[..., Scene]
