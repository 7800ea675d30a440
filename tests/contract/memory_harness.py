"""The contract harness of the in-memory cloud."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from drivers.memory import MemoryCloud, Scenario
from tests.contract.harness import Lack
from whimbrel.errors import Conflict
from whimbrel.model.vm import DiskFormat, Power, VolumeRef
from whimbrel.ports.cloud import Cloud


class MemoryHarness:
    """Implements tests.contract.harness.Harness."""

    pool = "default"
    network = "default"
    lacks: frozenset[Lack] = frozenset()

    def __init__(self, name: str) -> None:
        self._name = name
        self._made = 0
        self.scenario = Scenario(name)
        self.cloud: Cloud = MemoryCloud(name)

    def fresh_cloud(self) -> Cloud:
        return MemoryCloud(self._name)

    def make_vm(
        self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False, name: str | None = None
    ) -> str:
        self._made += 1
        return self.scenario.add_vm(name or f"guest-{self._made}", disks, running=running).ref

    def start_by_hand(self, ref: str) -> bool:
        with suppress(Conflict):
            MemoryCloud(self._name).compute.start(ref)
        return self.cloud.compute.power(ref) is Power.RUNNING

    def remove_vm(self, ref: str) -> None:
        self.scenario.remove_vm(ref, with_disks=True)

    def guest_write(self, ref: str, disk: str, offset: int, data: bytes) -> None:
        if self.cloud.compute.power(ref) not in {Power.RUNNING, Power.PAUSED}:
            raise Conflict(f"VM {ref} is off: nothing in it writes")
        self.scenario.write_disk(ref, disk, offset, data)

    def read_disk(self, ref: str, disk: str) -> bytes:
        return self.scenario.read_disk(ref, disk)

    def read_volume(self, volume: VolumeRef) -> bytes:
        return self.scenario.read_volume(volume.pool, volume.name)

    def add_foreign_token(self, ref: str) -> str:
        self.scenario.add_foreign_token(ref, "other-tool-1")
        return "other-tool-1"

    def foreign_tokens(self, ref: str) -> Collection[str]:
        return [token for token in self.scenario.tokens(ref) if not token.startswith("whimbrel-")]

    def damage_tracking(self, ref: str) -> None:
        self.scenario.crash_hypervisor(ref)

    @contextmanager
    def foreign_job(self, ref: str) -> Iterator[None]:
        self.scenario.set_foreign_job(ref, "backup by another tool")
        yield
        self.scenario.set_foreign_job(ref, None)

    def set_agent(self, ref: str, *, hostname: str) -> None:
        self.scenario.set_guest(ref, agent=True, hostname=hostname)
