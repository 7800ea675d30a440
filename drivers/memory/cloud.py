"""The in-memory cloud as one bundle of its ports."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from drivers.memory.calls import CallLog, port_call
from drivers.memory.compute import MemoryCompute
from drivers.memory.facts import source_facts, target_facts
from drivers.memory.guest import MemoryGuest
from drivers.memory.handover import MemoryHandover
from drivers.memory.imports import MemoryImports
from drivers.memory.networks import MemoryNetworks
from drivers.memory.points import MemoryPoints
from drivers.memory.serving import MemoryServing
from drivers.memory.shadows import MemoryShadows
from drivers.memory.state import cloud_state
from drivers.memory.volumes import MemoryVolumes
from whimbrel.model.facts import FitFacts, SourceFacts, TargetFacts
from whimbrel.model.vm import Capabilities, VmSpec
from whimbrel.ports.compute import ComputePort
from whimbrel.ports.guest import GuestPort
from whimbrel.ports.handover import HandoverPort
from whimbrel.ports.imports import ImportPort
from whimbrel.ports.network import NetworkPort
from whimbrel.ports.point_in_time import PointInTimePort
from whimbrel.ports.serving import ServingPort
from whimbrel.ports.shadow import ShadowPort
from whimbrel.ports.volume import VolumePort

PORT = "cloud"


class MemoryCloud:
    """A Cloud whose state belongs to its name: every object of the same name in this process shows the same things."""

    def __init__(self, name: str) -> None:
        state = cloud_state(name)
        self._state = state
        self.name = name
        self.compute: ComputePort = MemoryCompute(state)
        self.volumes: VolumePort = MemoryVolumes(state)
        self.points: PointInTimePort = MemoryPoints(state)
        self.networks: NetworkPort = MemoryNetworks(state)
        self.guest: GuestPort = MemoryGuest(state)
        self.serving: ServingPort = MemoryServing(state)
        self.shadows: ShadowPort = MemoryShadows(state)
        self.handover: HandoverPort | None = MemoryHandover(state)

    @property
    def imports(self) -> ImportPort | None:
        """As its scenario has set it."""
        return MemoryImports(self._state) if self._state.capabilities.imports else None

    @property
    def log(self) -> CallLog:
        """The calls on all ports of this cloud so far, in order."""
        return self._state.log

    @port_call(PORT)
    def capabilities(self) -> Capabilities:
        """What this cloud can do, as its scenario has set it."""
        return self._state.capabilities

    @port_call(PORT)
    def source_facts(self, vm: str) -> SourceFacts:
        """Facts of a VM to be moved. Raises NotFound, Conflict."""
        return source_facts(self._state, vm)

    @port_call(PORT)
    def target_facts(self) -> TargetFacts:
        """Facts of this cloud as a target."""
        return target_facts(self._state)

    def fit(self, vm: VmSpec, size: str | None = None) -> FitFacts:
        """Nothing to ask: VMs are not placed."""
        return FitFacts()

    def one_look(self) -> AbstractContextManager[None]:
        """Every question looks for itself."""
        return nullcontext()

    def close(self) -> None:
        """Nothing to give up: sessions and points outlive the object, as they would outlive a worker."""

    @staticmethod
    def reset(name: str) -> None:
        """Empty the cloud of this name for the next test; one that was never used is fine."""
        cloud_state(name).clear()
