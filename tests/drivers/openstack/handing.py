"""A handover as the workflow carries it out, act by act, on two clouds; and what must be true at any moment."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from activities.compute import ComputeActivities
from activities.handover import HandoverActivities
from drivers.openstack import OpenStackCloud
from drivers.openstack.backing import image_name
from tests.contract.openstack_harness import patiently
from tests.contract.openstack_sharing import OpenStackSharing
from whimbrel.contracts.activity_io import FenceInput, RestoreSourceInput, StartInput, VmInput
from whimbrel.contracts.handover_io import DefineInput, HandoverInput
from whimbrel.model.naming import migration_id
from whimbrel.model.vm import TargetVm, VmSpec
from whimbrel.ports.cloud import Cloud

Act = Callable[[], Any]


class Handing:
    """One VM that is off, and its way to the other cloud and back."""

    def __init__(self, sharing: OpenStackSharing, disks: int = 2) -> None:
        self.sharing = sharing
        self.clouds: dict[str, OpenStackCloud] = {"a": sharing.source._inner, "b": sharing.target._inner}  # type: ignore[attr-defined]
        ref = sharing.make_vm([(4 << 20, "raw")] * disks)
        self.vm: VmSpec = sharing.source.compute.inspect(ref)
        self.activities = HandoverActivities(self, turn_wait_s=0.0)
        self.compute = ComputeActivities(self)
        self.images = {disk.key: f"volume-{disk.location}" for disk in self.vm.disks}
        self.ids = self.shared.ids("shared", self.images.values())
        self.turn = 0
        self.begin()

    def get(self, name: str) -> Cloud:
        """As a registry of clouds."""
        return self.clouds[name]

    def names(self) -> list[str]:
        return [*self.clouds]

    @property
    def shared(self) -> Any:
        """The pool, seen without a cloud."""
        return self.clouds["a"]._backing.images.shared

    def begin(self) -> None:
        """Another migration of the same VM."""
        self.turn += 1
        self.wanted = HandoverInput(
            source="a",
            target="b",
            spec=self.vm,
            pools={"shared": "shared"},
            migration=migration_id("handing", secrets.token_hex(8)),
            turn=self.turn,
        )
        self.wanted = self.wanted.model_copy(update={"disks": self.activities.look(self.wanted).disks})
        self.adopted: Any = None
        self.ref = ""

    # -- the acts, as the workflow has them

    def forth(self) -> list[Act]:
        return [self.fence, self.release, self.adopt, self.define]

    def back(self) -> list[Act]:
        return [self.remove, self.abandon, self.reclaim, self.restore]

    def confirm(self) -> list[Act]:
        there = VmInput(cloud="b", ref=self.vm.name, migration=self.wanted.migration)
        shell = VmInput(cloud="a", ref=self.vm.ref, migration=self.wanted.migration)
        return [
            lambda: self.compute.release(there.model_copy(update={"ref": self.ref})),
            partial(self.activities.forget_source, shell),
        ]

    def fence(self) -> None:
        self.compute.fence(FenceInput(cloud="a", ref=self.vm.ref, migration=self.wanted.migration))
        assert self.sharing.source.compute.fenced(self.vm.ref) == self.wanted.migration

    def release(self) -> None:
        released = self.activities.release(self.wanted)
        assert released.disks == self.wanted.disks

    def adopt(self) -> None:
        self.adopted = self.activities.adopt(self.wanted).disks

    def define(self) -> None:
        nics = tuple(nic.model_copy(update={"network": self.sharing.network}) for nic in self.vm.nics)
        vm = TargetVm(migration=self.wanted.migration, name=self.vm.name, source=self.vm, disks=self.adopted, nics=nics)
        self.ref = self.activities.define(DefineInput(handover=self.wanted, vm=vm)).vm.ref

    def start(self) -> None:
        self.compute.start(StartInput(cloud="b", ref=self.ref))

    def remove(self) -> None:
        self.compute.ensure_absent(VmInput(cloud="b", ref=self.vm.name, migration=self.wanted.migration))

    def abandon(self) -> None:
        self.activities.abandon(self.wanted)

    def reclaim(self) -> None:
        assert self.activities.reclaim(self.wanted).ours

    def restore(self) -> None:
        wanted = RestoreSourceInput(cloud="a", spec=self.vm, migration=self.wanted.migration, points=False)
        assert self.compute.restore_source(wanted).same_definition

    # -- what must be true

    def records(self) -> dict[str, list[str]]:
        """By image id: clouds in which a record of Cinder leads to the image by its name."""
        found: dict[str, list[str]] = {image: [] for image in self.ids.values()}
        for side in (self.sharing.a, self.sharing.b):
            names = [image_name(volume.id) for volume in side.records()]
            for image in self.shared.ids("shared", names).values():  # as whoever opens it would find it
                if image in found:
                    found[image].append(side.lab.name)
        return found

    def check(self) -> None:
        """No image is lost, or managed twice, at any moment."""
        by_id = self.shared.names("shared")
        for image in self.ids.values():
            assert [name for name, found in by_id.items() if found == image], f"image {image} is lost"
        for image, clouds in self.records().items():
            assert len(clouds) <= 1, f"image {image} is managed by {clouds}"

    def at_home(self) -> None:
        """All is as it was: nothing of a migration is left in either cloud, or on the images."""
        seen = self.sharing.source.compute.inspect(self.vm.ref)
        assert seen == self.vm
        server = self.sharing.a.conn.compute.get_server(self.vm.ref)
        assert (server.is_locked, server.metadata) == (False, {})
        assert self.shared.ids("shared", self.images.values()) == self.ids
        for image in self.ids.values():
            assert self.shared.get("shared", image).marks == {}
        for disk in self.vm.disks:
            volume = self.sharing.a.conn.block_storage.get_volume(disk.location)
            assert not [key for key in volume.metadata if key.startswith("whimbrel")]
        left = self.left_in_b()
        assert left == [], f"left in cloud b: {left}"

    def left_in_b(self) -> list[str]:
        """Servers, volumes, ports of cloud b that were not there before; a record may take a moment to go."""
        for _ in range(20):
            left = sorted(self.sharing.b._ids() - self.sharing.b._before)
            if not left:
                break
            time.sleep(0.5)
        return left

    def moved(self) -> None:
        """Cloud b has it, and cloud a knows nothing of it."""
        there = self.sharing.target.compute.inspect(self.vm.name)
        assert there.owner_migration is None
        assert {len(clouds) for clouds in self.records().values()} == {1}
        assert all(clouds == ["b"] for clouds in self.records().values())
        for image in self.ids.values():
            assert self.shared.get("shared", image).marks == {}
        ports = {port.id for port in self.sharing.a.conn.network.ports()}
        assert sorted(self.sharing.a._ids() - self.sharing.a._before - ports) == []
        volumes = [self.sharing.b.conn.block_storage.get_volume(disk.location) for disk in there.disks]
        assert [volume.name for volume in volumes] == [f"{self.vm.name}-{disk.key}" for disk in self.vm.disks]


def go(acts: list[Act]) -> None:
    """All of them, each as often as Temporal would."""
    for act in acts:
        patiently(act)
