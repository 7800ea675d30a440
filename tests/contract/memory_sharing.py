"""Two in-memory clouds on one storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from drivers.memory import MemoryCloud, Scenario
from whimbrel.errors import Conflict
from whimbrel.model.vm import DiskFormat, Power
from whimbrel.ports.cloud import Cloud


class MemorySharing:
    """Implements tests.contract.sharing_harness.SharingHarness."""

    pool = "shared"
    apart = "default"
    network = "default"

    def __init__(self, name: str) -> None:
        self._names = (f"{name}-a", f"{name}-b")
        self.scenario = Scenario(self._names[0])
        self.scenario.share_pool(self.pool, self._names[1])
        self.source: Cloud = MemoryCloud(self._names[0])
        self.target: Cloud = MemoryCloud(self._names[1])
        self._made = 0

    def fresh(self, cloud: Cloud) -> Cloud:
        return MemoryCloud(cloud.name)

    def make_vm(self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False) -> str:
        self._made += 1
        return self.scenario.add_vm(f"guest-{self._made}", disks, running=running, pool=self.pool).ref

    def write(self, ref: str, disk: str, data: bytes) -> None:
        self.scenario.write_disk(ref, disk, 0, data)

    def read(self, cloud: Cloud, location: str, form: DiskFormat) -> bytes:
        del form
        pool, _, name = location.partition(":")[2].partition("/")
        return Scenario(cloud.name).read_volume(pool, name)

    def force_start(self, cloud: Cloud, ref: str) -> bool:
        try:
            cloud.compute.start(ref)
        except Conflict:
            return False
        return cloud.compute.power(ref) is Power.RUNNING

    @contextmanager
    def opened_by_a_stranger(self, location: str, form: DiskFormat) -> Iterator[None]:
        """A VM of a third cloud, which sees the storage too."""
        del form
        pool, _, name = location.partition(":")[2].partition("/")
        third = f"{self._names[0]}-third"
        stranger = Scenario(third)
        stranger.add_vm("stranger", running=True)
        for cloud in self._names:
            Scenario(cloud)._state.sharers[pool].append(stranger._state)
        vm = stranger._state.find("stranger")
        stranger._state.volumes[pool, name] = self.scenario._state.volumes[pool, name]
        vm.volumes = {"vda": (pool, name)}
        yield
        MemoryCloud.reset(third)
