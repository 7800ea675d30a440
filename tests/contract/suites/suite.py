"""What all contract suites share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest

from tests.contract.harness import Harness
from whimbrel.model import naming
from whimbrel.model.vm import DiskFormat, NicSpec, Power, TargetDisk, TargetVm, VmSpec, VolumeRef, VolumeSpec

MIB = 1 << 20
GRAIN = 64 * 1024
SIZE = 2 * MIB


class ContractSuite:
    """A driver's test derives from a suite, is named ``Test...``, and overrides the ``harness`` fixture."""

    disk_format: DiskFormat = "qcow2"

    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        raise NotImplementedError("a driver's test must override the harness fixture")

    @pytest.fixture
    def migration(self) -> str:
        """A migration id of the real form, new for every test, so that runs on a shared lab do not meet."""
        return naming.migration_id("contract", secrets.token_hex(8))

    def volume(
        self, harness: Harness, migration: str, disk: str = "vda", size_bytes: int = SIZE, vm: str = "guest"
    ) -> VolumeRef:
        """A volume of the migration."""
        return harness.cloud.volumes.ensure_volume(self.volume_spec(harness, migration, disk, size_bytes, vm))

    def volume_spec(
        self, harness: Harness, migration: str, disk: str = "vda", size_bytes: int = SIZE, vm: str = "guest"
    ) -> VolumeSpec:
        """What such a volume is asked for with."""
        return VolumeSpec(
            name=naming.volume_name(vm, disk, migration),
            pool=harness.pool,
            size_bytes=size_bytes,
            format=self.disk_format,
            migration=migration,
        )

    def moved_vm(self, harness: Harness, disks: int = 1) -> VmSpec:
        """A VM as it would be read from another cloud of the same kind: it does not exist here (any more)."""
        ref = harness.make_vm([(SIZE, self.disk_format)] * disks)
        spec = harness.cloud.compute.inspect(ref)
        harness.remove_vm(ref)
        return spec

    def target(
        self, harness: Harness, migration: str, source: VmSpec, name: str = "", mac: str | None = None
    ) -> TargetVm:
        """The VM to be rebuilt, with volumes made for it."""
        vm_name = name or f"rebuilt-{migration}"
        nic = source.nics[0]
        return TargetVm(
            migration=migration,
            name=vm_name,
            source=source,
            disks=tuple(
                TargetDisk(
                    spec=disk, volume=self.volume(harness, migration, disk.key, size_bytes=disk.size_bytes, vm=vm_name)
                )
                for disk in source.disks
            ),
            nics=(NicSpec(key=nic.key, mac=mac or nic.mac, network=harness.network, model=nic.model),),
        )


def wait_for_power(harness: Harness, ref: str, power: Power, timeout_s: float = 90.0) -> None:
    """Look at the VM until it is in this state."""
    deadline = time.monotonic() + timeout_s
    while harness.cloud.compute.power(ref) is not power:
        assert time.monotonic() < deadline, f"VM {ref} did not become {power} within {timeout_s} s"
        time.sleep(0.05)
