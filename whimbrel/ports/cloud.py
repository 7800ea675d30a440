"""A cloud as the activities see it: its roles in one bundle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

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


class Cloud(Protocol):
    """One configured cloud. Objects are thread-safe and connect when first used."""

    @property
    def name(self) -> str:
        """The name that plans use."""
        ...

    @property
    def compute(self) -> ComputePort:
        """Its VMs."""
        ...

    @property
    def volumes(self) -> VolumePort:
        """Its volumes."""
        ...

    @property
    def points(self) -> PointInTimePort:
        """Points in time of its VMs."""
        ...

    @property
    def networks(self) -> NetworkPort:
        """Its networks."""
        ...

    @property
    def guest(self) -> GuestPort:
        """Its running guests."""
        ...

    @property
    def handover(self) -> HandoverPort | None:
        """Its part in handing disks over; None where ``capabilities().handover`` is False for good."""
        ...

    @property
    def serving(self) -> ServingPort:
        """VMs on served disks; used where ``Capabilities.serve_disks``."""
        ...

    @property
    def imports(self) -> ImportPort | None:
        """How its volumes are fed by import; None where a streaming server writes them (``ServingPort.local_path``)."""
        ...

    @property
    def shadows(self) -> ShadowPort:
        """Overlays over the disks of stopped VMs; used where ``Capabilities.shadows``."""
        ...

    def capabilities(self) -> Capabilities:
        """What this cloud can do. Raises Unavailable, AuthFailed."""
        ...

    def source_facts(self, vm: str) -> SourceFacts:
        """All that the prechecks ask about a VM to be moved, gathered at once. Raises NotFound, Conflict."""
        ...

    def target_facts(self) -> TargetFacts:
        """All that the prechecks ask about this cloud as a target, gathered at once."""
        ...

    def fit(self, vm: VmSpec, size: str | None = None) -> FitFacts:
        """What this cloud, as a target, says about a VM with cards on its networks and disks in its pools.

        ``size`` is the name of the size (flavor) that the plan asks for.

        Nothing is made. A cloud that does not place VMs answers ``FitFacts()``. Raises Unavailable.
        """
        ...

    def one_look(self) -> AbstractContextManager[None]:
        """Inside, this thread's questions may be answered from one look at the cloud; nothing is changed there."""
        ...

    def close(self) -> None:
        """Give connections up; never raises."""
        ...


class CloudRegistry(Protocol):
    """The clouds that this worker knows, by the name that plans use."""

    def get(self, name: str) -> Cloud:
        """The cloud, made when first asked for. Raises InvalidPlan for a name that is not configured."""
        ...

    def names(self) -> list[str]:
        """All configured names."""
        ...
