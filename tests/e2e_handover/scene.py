"""A guest whose volume lies in the pool that both clouds see, and what must be true of it wherever it is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivers.ceph import RbdImages, binding
from drivers.ceph.cluster import pool_of
from labs.kvm.records import Record, parse_console
from labs.openstack import LabServer, OpenStackLab, boot
from labs.openstack.ceph import command as ceph
from labs.openstack.nova import instances_path
from labs.openstack.server import records_on
from tests.contract.openstack_harness import OpenStackHarness
from tests.e2e.installation import Installation
from tests.e2e.running import Running
from tests.e2e_handover.plans import plan_of
from whimbrel.model.progress import MigrationReport

BALLAST_AT, BALLAST_BYTES = 512 << 20, 96 << 20
"""Data that nobody touches: had it been copied, the pool's counters would tell."""


class Scene:
    """Made anew for every test; ``close`` removes all of it."""

    def __init__(self, installation: Installation, lab: OpenStackLab, name: str) -> None:
        self.installation = installation
        self.lab = lab
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.sides = {cloud: OpenStackHarness(lab.cloud(cloud)) for cloud in ("a", "b")}
        cloud = lab.cloud("a")
        self.shared = RbdImages(conf=str(cloud.ceph_conf), user=cloud.ceph_user).shared
        self.image = ""
        self.acknowledged: list[Record] = []
        self.server: LabServer
        self.definition = ""

    def boot(self) -> None:
        """The guest writes records beside data that stays as it is."""
        taken = {port.mac_address[-2:] for side in self.sides.values() for port in side.conn.network.ports()}
        number = random.choice([number for number in range(10, 99) if f"{number:02d}" not in taken])
        self.server = boot(self.lab.cloud("a"), self.name, number, shared=True)
        self.server.wait_console(r"WBREC1 kind=run .* n=3 ")
        self.image = self.shared.ids("shared", [f"volume-{self.server.volume_id}"])[f"volume-{self.server.volume_id}"]
        content = os.urandom(BALLAST_BYTES)
        self.ballast = hashlib.sha256(content).hexdigest()
        before = self.pool_bytes_written()
        self._ballast(lambda image: image.write(content, BALLAST_AT))
        # Ceph's counters lag by some seconds: only now do they count from here
        self.sides["a"]._until(lambda: self.pool_bytes_written() >= before + BALLAST_BYTES)
        self.definition = self.described()

    def _ballast(self, act: Callable[[Any], Any]) -> Any:
        cloud = self.lab.cloud("a")
        with (
            pool_of(str(cloud.ceph_conf), cloud.ceph_user, "shared") as pool,
            binding.load().rbd.Image(pool.ioctx, image_id=self.image) as image,
        ):
            return act(image)

    def pool_bytes_written(self) -> int:
        """By Ceph's own counter."""
        told = json.loads(ceph(self.lab.layout, "df", "detail", "--format", "json"))
        (shared,) = [pool for pool in told["pools"] if pool["name"] == "shared"]
        return int(shared["stats"]["wr_bytes"])

    def migrate(self, **changes: Any) -> Running:
        """Start a migration."""
        plan = plan_of(self.name, **changes)
        return Running(self.installation, plan, self.installation.start(plan))

    # -- looking

    def found(self, cloud: str) -> Any | None:
        """The server of this name."""
        return next((one for one in self.sides[cloud].conn.compute.servers() if one.name == self.name), None)

    def console(self, cloud: str) -> list[Record]:
        """All that the guest has acknowledged in its present boot there; remembered, as Nova forgets it."""
        server = self.found(cloud)
        assert server is not None
        path = Path(instances_path(self.lab.cloud(cloud).layout)) / server.id / "console.log"
        seen = parse_console(path.read_text(errors="replace"))
        self.acknowledged += seen
        return seen

    def wait_records(self, cloud: str, boot: int, count: int, *, timeout_s: float = 120) -> None:
        """Wait for so many records of a boot."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(FileNotFoundError, AssertionError):
                if len([record for record in self.console(cloud) if record.boot == boot]) >= count:
                    return
            assert time.monotonic() < deadline, f"no {count} records of boot {boot} in cloud {cloud}"
            time.sleep(0.3)

    def wait_later_boot(self, cloud: str, after: int, *, timeout_s: float = 240) -> int:
        """Wait for two records of a boot later than ``after``; its number."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(FileNotFoundError, AssertionError):
                boots = [record.boot for record in self.console(cloud) if record.boot > after]
                if len(boots) > 1:
                    return boots[-1]
            assert time.monotonic() < deadline, f"no boot after {after} in cloud {cloud}"
            time.sleep(0.3)

    def wait_released(self, *, timeout_s: float) -> None:
        """Wait until the image has lost its name."""
        deadline = time.monotonic() + timeout_s
        while self.shared.get("shared", self.image).name == f"volume-{self.server.volume_id}":
            assert time.monotonic() < deadline, "the disks were not released"
            time.sleep(0.2)

    def boots(self) -> int:
        """How often the guest has booted, by its image."""
        return records_on(self.lab.cloud("a"), "shared", self.shared.get("shared", self.image).name).boots

    def described(self) -> str:
        """All of the source that a rollback must give back."""
        server, api = self.found("a"), self.sides["a"].conn
        assert server is not None
        volumes = [api.block_storage.get_volume(one.volume_id) for one in api.compute.volume_attachments(server.id)]
        ports = list(api.network.ports(device_id=server.id))
        return json.dumps(
            [
                [server.id, server.metadata, server.flavor.original_name, server.key_name],
                [[volume.id, volume.name, volume.size, volume.volume_type, volume.metadata] for volume in volumes],
                [[volume.volume_image_metadata, volume.is_bootable] for volume in volumes],
                [[port.id, port.mac_address, port.fixed_ips] for port in ports],
            ],
            sort_keys=True,
            default=str,
        )

    # -- what must be true

    def stop(self, cloud: str) -> None:
        """The guest off, its last record acknowledged."""
        server, api = self.found(cloud), self.sides[cloud].conn.compute
        assert server is not None
        api.stop_server(server.id)
        self.sides[cloud]._until(lambda: api.get_server(server.id).status == "SHUTOFF")
        self.console(cloud)

    def whole(self, boots: int) -> None:
        """Every acknowledged record is on the image, in order; so is the data beside them; one Cinder has it."""
        image = self.shared.get("shared", self.image)
        held = records_on(self.lab.cloud("a"), "shared", image.name)
        assert held.boots == boots
        assert held.lost(self.acknowledged) == []
        assert (held.gaps(), held.bad_slots, held.misplaced_slots) == ([], (), ())
        content = self._ballast(lambda opened: opened.read(BALLAST_AT, BALLAST_BYTES))
        assert hashlib.sha256(content).hexdigest() == self.ballast
        assert image.marks == {}
        known = {f"volume-{one.id}" for side in self.sides.values() for one in side.conn.block_storage.volumes()}
        assert image.name in known

    def moved(self, report: MigrationReport, *, boots: int = 2) -> None:
        """In b, and nothing in a."""
        assert report.outcome == "completed", report.reason
        assert (report.leftovers, report.bytes_sent) == ((), 0)
        assert {record.mode for record in report.status.verify} == {"same-volume"}
        assert self.found("a") is None
        assert self.server.volume_id not in {one.id for one in self.sides["a"].conn.block_storage.volumes()}
        self.stop("b")
        self.whole(boots)
        server = self.found("b")
        assert server is not None
        (port,) = self.sides["b"].conn.network.ports(device_id=server.id)
        assert port.mac_address == self.server.address.mac
        assert port.fixed_ips[0]["ip_address"] == self.server.address.ip

    def untouched(self, report: MigrationReport, *, boots: int) -> None:
        """In a as it was, running; nothing in b."""
        assert report.outcome == "rolled_back", report.reason
        assert report.leftovers == ()
        assert report.source_restored is True
        assert self.found("b") is None
        assert self.described() == self.definition
        self.wait_records("a", boots, 2)
        self.stop("a")
        self.whole(boots)
        assert self.sides["b"]._ids() - self.sides["b"]._before == set()

    def close(self) -> None:
        """Remove what is there, and the image if no Cinder has it any more."""
        for side in (self.sides["b"], self.sides["a"]):
            side.end()
        left = {image: name for name, image in self.shared.names("shared").items()}
        if self.image in left:
            OpenStackHarness.rbd(self.sides["a"], "rm", "--no-progress", f"shared/{left[self.image]}")
