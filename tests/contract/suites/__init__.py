"""One abstract suite for each port; see docs/driver-guide.md."""

from tests.contract.suites.compute import ComputeContract
from tests.contract.suites.facts import CloudFactsContract
from tests.contract.suites.frozen import FrozenWriterContract
from tests.contract.suites.guest import GuestContract
from tests.contract.suites.network import NetworkContract
from tests.contract.suites.point_in_time import PointInTimeContract, TrackedPointContract, UntrackedPointContract
from tests.contract.suites.serving import ServingContract
from tests.contract.suites.shadow import ShadowContract, TrackedShadowContract
from tests.contract.suites.volume import VolumeContract

__all__ = [
    "CloudFactsContract",
    "ComputeContract",
    "FrozenWriterContract",
    "GuestContract",
    "NetworkContract",
    "PointInTimeContract",
    "ServingContract",
    "ShadowContract",
    "TrackedPointContract",
    "TrackedShadowContract",
    "UntrackedPointContract",
    "VolumeContract",
]
