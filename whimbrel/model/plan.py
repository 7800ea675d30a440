"""What is to be done with one VM: the plan as a migration's workflow receives it, every default filled in.

The operator's YAML file (``whimbrel.config.plan``) is resolved to one of these for each VM.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from whimbrel.model.endpoint import Frozen

Mode = Literal["incremental", "cold", "streaming", "dual-attach"]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Window(Frozen):
    """When the cutover may begin; ``closes_at`` refuses it afterwards. Aware times."""

    opens_at: datetime | None = None
    closes_at: datetime | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        for moment in (self.opens_at, self.closes_at):
            if moment is not None and moment.tzinfo is None:
                raise ValueError("times need a zone, for example 2026-11-28T22:00:00Z")
        if self.opens_at and self.closes_at and self.closes_at <= self.opens_at:
            raise ValueError("the window closes before it opens")
        return self


class RoundPolicy(Frozen):
    """When rounds of changed blocks run and when they end."""

    outage_budget_s: Positive = 60.0
    """The cutover begins by itself when the forecast outage is at most this."""
    max_rounds: Annotated[int, Field(ge=1)] = 100
    min_interval_s: NonNegative = 5.0
    max_interval_s: Positive = 3600.0
    """The interval between rounds adapts to the last round's time within these two."""
    shrink_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A round must be smaller than this share of the one before, or rounds count as no longer shrinking."""
    cutover: Literal["auto", "manual"] = "auto"
    """``manual`` holds (and keeps synchronising) until the operator says ``cutover``."""
    if_not_converging: Literal["wait", "cutover"] = "wait"
    expected_stop_s: NonNegative = 10.0
    """How long this guest takes to shut down: part of the forecast, until it is measured."""
    expected_boot_s: NonNegative = 15.0
    """How long the rebuilt guest takes until its health checks pass: part of the forecast."""

    @model_validator(mode="after")
    def _ordered(self) -> RoundPolicy:
        if self.min_interval_s > self.max_interval_s:
            raise ValueError("min_interval_s is above max_interval_s")
        return self


class StopPolicy(Frozen):
    """How the source is stopped: asked first, then what."""

    graceful_timeout_s: NonNegative = 180.0
    """0 does not ask at all."""
    then: Literal["force", "hold"] = "force"
    """``hold`` goes back to the rounds and asks the operator."""


class ConfirmPolicy(Frozen):
    """What ends the confirm gate besides the operator."""

    after_s: Positive | None = None
    then: Literal["wait", "auto_confirm", "auto_rollback"] = "wait"

    @model_validator(mode="after")
    def _complete(self) -> ConfirmPolicy:
        if self.then != "wait" and self.after_s is None:
            raise ValueError(f"{self.then} needs after_s")
        return self


class VerifyPolicy(Frozen):
    """How source and target are compared at the end."""

    mode: Literal["full", "sampled"] = "full"
    sample_fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    when: Literal["before_boot", "after_boot"] = "after_boot"
    """``after_boot`` compares a point in time taken before the target's first write, so it costs no outage."""
    unchanged_sample: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of blocks that tracking calls unchanged which each round compares anyway, to catch tracking that lies."""


class ConsoleCheck(Frozen):
    """The console log must hold ``pattern`` (a regular expression) after the boot."""

    kind: Literal["console"] = "console"
    pattern: str


class AgentCheck(Frozen):
    """The guest agent must answer."""

    kind: Literal["agent"] = "agent"


class TcpCheck(Frozen):
    """A TCP port must accept a connection from the mover."""

    kind: Literal["tcp"] = "tcp"
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


class CommandCheck(Frozen):
    """The plan's own command, run by the worker without a shell; exit code 0 passes."""

    kind: Literal["command"] = "command"
    argv: tuple[str, ...] = Field(min_length=1)


HealthCheck = Annotated[ConsoleCheck | AgentCheck | TcpCheck | CommandCheck, Field(discriminator="kind")]


class HealthPolicy(Frozen):
    """Checks of the rebuilt VM; that it runs is always checked."""

    checks: tuple[HealthCheck, ...] = ()
    timeout_s: Positive = 300.0
    on_failure: Literal["wait", "rollback"] = "wait"


class StreamPolicy(Frozen):
    """How a VM runs at the target before its data is there."""

    protect: Literal["none", "mirror", "journal"] = "none"
    """Where the target's writes are kept besides the target, until confirm.

    ``mirror``: a write is acknowledged when it is at the source too; ``journal``: it follows within ``max_lag``."""
    max_lag_bytes: Annotated[int, Field(gt=0)] = 64 << 20
    max_lag_s: Positive = 5.0
    precopy: bool = False
    """Baseline and rounds first; only the last delta is streamed."""
    prefetch: bool = True
    """Fetch in the order that recorded reads (of a drill) and the guest's own accesses predict."""
    miss_p99_s: Positive = 0.1
    """When misses wait longer than this for ``yield_after_s``, the background yields and the operator is told."""
    yield_after_s: Positive = 20.0
    source_fail_after_s: Positive | None = None
    """How long the guest's reads wait for a source that is away before they get an error; None: for ever."""


class DrillPolicy(Frozen):
    """A rehearsal: where it runs and what must hold."""

    networks: dict[str, str] = Field(default_factory=dict)
    """Source network -> isolated network at the target; ``*`` stands for all others."""
    name_suffix: str = "-drill"
    data: Literal["auto", "stream", "copy"] = "auto"
    """How the drilled VM gets its data; ``auto`` copies only where the target cannot run a VM on served disks."""
    checks: tuple[HealthCheck, ...] = ()
    """The plan's own tests, besides its health checks."""
    hydrate: bool = False
    """Wait until all data has arrived, and compare it."""
    timeout_s: Positive = 900.0

    def network_for(self, source_network: str) -> str | None:
        """Isolated network for a NIC, or None when the plan maps neither it nor ``*``."""
        return self.networks.get(source_network, self.networks.get("*"))


class PlacementPolicy(Frozen):
    """As what and where the target cloud makes the VM, by the target's names; a cloud without such things refuses."""

    sizes: dict[str, str] = Field(default_factory=dict)
    """Source size -> target size (flavor); ``*`` stands for all others, and for VMs of clouds without sizes."""
    zone: str | None = None
    """Availability zone; None: the cloud's choice."""
    group: str | None = None
    """Server group that the VM joins; a drill's VM joins none."""

    def size_for(self, source_size: str) -> str | None:
        """The size that is asked for; None: the one that fits best."""
        return self.sizes.get(source_size, self.sizes.get("*"))


class Companion(Frozen):
    """Another VM that moves together with this one: what of its plan counts against the same quotas."""

    vm: str
    target_name: str | None = None
    storage: dict[str, str] | None = None
    """None: the same as this VM's."""
    placement: PlacementPolicy | None = None
    """None: the same as this VM's."""


class VmPlan(Frozen):
    """One VM's migration, complete."""

    plan: str
    vm: str
    """Name or ref in the source cloud."""
    mode: Mode = "incremental"
    source: str
    target: str
    site: str = "default"
    """Site whose movers carry the bytes: the task queue ``data-<site>``."""
    target_name: str | None = None
    networks: dict[str, str] = Field(default_factory=dict)
    """Source network -> target network."""
    storage: dict[str, str] = Field(default_factory=dict)
    """Source pool -> target pool; ``*`` stands for all others."""
    placement: PlacementPolicy = PlacementPolicy()
    disk_format: Literal["keep", "raw", "qcow2"] = "keep"
    rounds: RoundPolicy = RoundPolicy()
    window: Window = Window()
    stop: StopPolicy = StopPolicy()
    confirm: ConfirmPolicy = ConfirmPolicy()
    verify: VerifyPolicy = VerifyPolicy()
    health: HealthPolicy = HealthPolicy()
    stream: StreamPolicy = StreamPolicy()
    drill: DrillPolicy = DrillPolicy()
    require_drill_s: Positive | None = None
    """The migration is refused unless a drill of this VM has passed within this time."""
    forget_source: bool = True
    """Dual-attach only: at confirm the source's VM object, which has no disks any more, is forgotten."""
    keep_writes: bool = False
    """A rollback brings the target's writes since cutover back to the source first."""
    bandwidth_bytes_per_s: Positive | None = None
    lanes: Annotated[int, Field(ge=1, le=8)] = 2
    parallel_disks: Annotated[int, Field(ge=1, le=16)] = 2
    ignore: tuple[str, ...] = ()
    """Ids of precheck rules whose blocking findings the operator accepts."""
    companions: tuple[Companion, ...] = ()
    """The VMs that are started with this one: room is asked for all of them."""

    @model_validator(mode="after")
    def _fits_its_mode(self) -> VmPlan:
        if self.mode == "streaming" and self.keep_writes:
            raise ValueError("keep_writes: with mode streaming say stream.protect: mirror (or journal) instead")
        if self.mode == "streaming" and self.disk_format == "qcow2":
            raise ValueError("disk_format: mode streaming makes raw volumes; say keep or raw")
        return self

    @property
    def runs_rounds(self) -> bool:
        """Whether the VM is copied while it runs, in rounds, before the source is stopped."""
        return self.mode == "incremental" or (self.mode == "streaming" and self.stream.precopy)

    def of(self, companion: Companion) -> VmPlan:
        """This plan as it holds for another VM that moves with this one, as far as the companion tells."""
        own = {key: getattr(companion, key) for key in ("storage", "placement") if getattr(companion, key) is not None}
        return self.model_copy(update={"vm": companion.vm, "target_name": companion.target_name, **own})

    def pool_for(self, source_pool: str | None) -> str | None:
        """Target pool for a disk in ``source_pool``; None when the plan maps neither it nor ``*``."""
        return self.storage.get(source_pool or "", self.storage.get("*"))

    def network_for(self, source_network: str) -> str | None:
        """Target network for a NIC, or None when the plan maps neither it nor ``*``."""
        return self.networks.get(source_network, self.networks.get("*"))
