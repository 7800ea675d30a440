"""Inputs and results of the activities that run streaming servers, keep shadows, and put a VM on its own disks."""

from __future__ import annotations

from whimbrel.model.endpoint import Endpoint, Frozen, NbdEndpoint
from whimbrel.model.plan import StreamPolicy
from whimbrel.model.point import DiskPoint
from whimbrel.model.stream import StreamFigures
from whimbrel.model.vm import TargetDisk, VmSpec


class DiskStream(Frozen):
    """One disk to be served while it arrives."""

    disk: TargetDisk
    source: DiskPoint
    """What is missing is read here."""
    precopied: bool = False
    """The volume was copied before: only what the source's tracking names is missing (all, if it names nothing)."""
    shadow: Endpoint | None = None
    """Where the guest's writes are kept as well."""


class ServeInput(Frozen):
    """Servers to be started, or found running."""

    cloud: str
    """Cloud of the volumes, on whose host this worker runs."""
    migration: str
    vm: str
    """Cloud and ref of the VM whose reads are recorded and predicted: ``kvm-a/5f0c...``."""
    epoch: str
    """Names the state that is streamed; a map of another is refused."""
    disks: tuple[DiskStream, ...]
    policy: StreamPolicy = StreamPolicy()
    bandwidth_bytes_per_s: float | None = None
    record: bool = False
    """Keep the guest's reads as a trace."""


class ServedDisk(Frozen):
    """A disk that is being served."""

    key: str
    endpoint: NbdEndpoint


class ServeResult(Frozen):
    """All disks, each on its export; none where the target's storage imports from the servers."""

    disks: tuple[ServedDisk, ...]
    imports: bool = False


class ImportInput(Frozen):
    """Volumes that import from the servers of a migration."""

    cloud: str
    migration: str
    disks: tuple[TargetDisk, ...]
    bandwidth_bytes_per_s: float | None = None
    """Of what the storage takes to fill them, all volumes together."""


class HydrateInput(Frozen):
    """Watch the servers of a migration until everything has arrived."""

    migration: str
    disks: tuple[str, ...]
    policy: StreamPolicy
    cloud: str = ""
    """Of the VM that runs on the servers."""
    ref: str = ""
    background: bool = True
    """False: only what the guest asks for is fetched (the migration is paused)."""
    bandwidth_bytes_per_s: float | None = None
    keep: bool = False
    """Go on watching when everything has arrived: a protected guest needs servers and shadows until it is switched."""
    source_patience_s: float = 5.0
    """After so long without the source the attempt ends, so that the source is opened anew."""


class HydrateResult(Frozen):
    """Everything is at the target."""

    figures: StreamFigures


class ProveInput(Frozen):
    """Compare what the guest never wrote with the source."""

    migration: str
    disk: str
    source: DiskPoint
    limit_bytes_per_s: float | None = None


class StreamInput(Frozen):
    """The servers of a migration."""

    migration: str
    disks: tuple[str, ...]


class StopStreamInput(Frozen):
    """The servers of a migration, to be ended, their files removed."""

    migration: str
    disks: tuple[str, ...]
    keep_trace_of: str | None = None
    """VM (``cloud/ref``) whose recorded reads are kept for later streams."""


class SwitchInput(Frozen):
    """A VM to be put on its own volumes."""

    cloud: str
    migration: str
    ref: str
    disks: tuple[TargetDisk, ...]


class ShadowInput(Frozen):
    """Overlays over the disks of a stopped VM."""

    cloud: str
    migration: str
    key: str
    vm: VmSpec
    disks: tuple[str, ...]


class MergedResult(Frozen):
    """What a merge brought back."""

    merged_bytes: int
