"""The form of a plan file: what an operator may write, every key optional that has a default."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from whimbrel.config.quantity import Bytes, DurationS, Rate
from whimbrel.config.schema import NAME_PATTERN, YamlModel, json_schema
from whimbrel.model.plan import HealthCheck, Mode

Text = Annotated[str, StringConstraints(min_length=1)]
Mapping = dict[Text, Text]


class RoundsSection(YamlModel):
    """When rounds of changed blocks run and when they end."""

    outage_budget_s: DurationS | None = Field(default=None, alias="outage_budget")
    """The cutover begins by itself when the forecast outage is at most this. Default 60s."""
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    """Most rounds before rounds count as not converging. Default 100."""
    min_interval_s: DurationS | None = Field(default=None, alias="min_interval")
    """Shortest pause between rounds. Default 5s."""
    max_interval_s: DurationS | None = Field(default=None, alias="max_interval")
    """Longest pause between rounds. Default 1h."""
    shrink_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """A round below this share of the one before counts as shrinking. Default 0.9."""
    cutover: Literal["auto", "manual"] | None = None
    """``manual`` keeps synchronising until the operator says ``cutover``. Default auto."""
    if_not_converging: Literal["wait", "cutover"] | None = None
    """What happens when rounds no longer shrink. Default wait."""
    expected_stop_s: DurationS | None = Field(default=None, alias="expected_stop")
    """How long this guest takes to shut down; part of the forecast outage. Default 10s."""
    expected_boot_s: DurationS | None = Field(default=None, alias="expected_boot")
    """How long it takes to boot and pass its health checks; part of the forecast outage. Default 15s."""


class WindowSection(YamlModel):
    """When the cutover may begin. Times with a zone: ``2026-11-28T22:00:00Z``."""

    opens_at: datetime | None = None
    """Not before this."""
    closes_at: datetime | None = None
    """Not after this."""


class StopSection(YamlModel):
    """How the source is stopped: asked first, then what."""

    graceful_timeout_s: DurationS | None = Field(default=None, alias="graceful_timeout")
    """How long the guest has to shut itself down; 0 does not ask at all. Default 3m."""
    then: Literal["force", "hold"] | None = None
    """``hold`` goes back to the rounds and asks the operator. Default force."""


class ConfirmSection(YamlModel):
    """What ends the confirm gate besides the operator."""

    after_s: DurationS | None = Field(default=None, alias="after")
    """How long the gate stays open. No default: it waits for the operator."""
    then: Literal["wait", "auto_confirm", "auto_rollback"] | None = None
    """What happens then. Default wait."""


class VerifySection(YamlModel):
    """How source and target are compared at the end."""

    mode: Literal["full", "sampled"] | None = None
    """Compare everything, or a random sample. Default full."""
    sample_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the blocks in a sample. Default 0.05."""
    when: Literal["before_boot", "after_boot"] | None = None
    """``after_boot`` compares a point in time from before the target's first write: no outage. Default after_boot."""
    unchanged_sample: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of blocks called unchanged that each round compares anyway. Default 0.001."""


class HealthSection(YamlModel):
    """Checks of the rebuilt VM; that it runs is always checked."""

    checks: tuple[HealthCheck, ...] | None = None
    """Further checks; all must pass."""
    timeout_s: DurationS | None = Field(default=None, alias="timeout")
    """How long the checks may take to pass. Default 5m."""
    on_failure: Literal["wait", "rollback"] | None = None
    """Wait for the operator, or roll back at once. Default wait."""


class StreamSection(YamlModel):
    """How a VM runs at the target before its data is there (mode ``streaming``)."""

    protect: Literal["none", "mirror", "journal"] | None = None
    """Keep the target's writes at the source too: at once, or with a lag. Default none."""
    max_lag_bytes: Bytes | None = Field(default=None, alias="max_lag")
    """Most data a journal may be behind. Default 64MiB."""
    max_lag_s: DurationS | None = Field(default=None, alias="max_lag_time")
    """Longest time a journal may be behind. Default 5s."""
    precopy: bool | None = None
    """Baseline and rounds first; only the last delta is streamed. Default false."""
    prefetch: bool | None = None
    """Fetch in the order that recorded reads and the guest's accesses predict. Default true."""
    miss_p99_s: DurationS | None = Field(default=None, alias="miss_p99")
    """When misses wait longer than this, the background yields. Default 100ms."""
    yield_after_s: DurationS | None = Field(default=None, alias="yield_after")
    """For how long misses may be slow before it does. Default 20s."""
    source_fail_after_s: DurationS | None = Field(default=None, alias="source_fail_after")
    """When reads that wait for a lost source get an error. No default: they wait."""


class DrillSection(YamlModel):
    """A rehearsal of the migration, on an isolated network."""

    networks: Mapping | None = None
    """Source network: isolated target network; ``*`` stands for all others."""
    name_suffix: Text | None = None
    """Added to the target's name. Default -drill."""
    data: Literal["auto", "stream", "copy"] | None = None
    """``stream`` boots it before its data is there; ``copy`` copies all of it first; ``auto`` copies only where the
    target cannot run a VM on served disks. Default auto."""
    checks: tuple[HealthCheck, ...] | None = None
    """Tests besides the health checks."""
    hydrate: bool | None = None
    """Wait until all data has arrived, and compare it. Default false."""
    timeout_s: DurationS | None = Field(default=None, alias="timeout")
    """How long the drill's checks may take. Default 15m."""


class PlacementSection(YamlModel):
    """As what and where the target cloud makes the VM, by names of the target; for clouds that have such things."""

    sizes: Mapping | None = None
    """Source size: target size (flavor); ``*`` stands for all others. No default: the smallest that has enough."""
    zone: Text | None = None
    """Availability zone. No default: the cloud's choice."""
    group: Text | None = None
    """Server group that the VM joins. No default: none. A drill's VM joins none."""


class Settings(YamlModel):
    """What may stand in ``defaults`` and, for one VM, in its entry."""

    mode: Mode | None = None
    """``incremental`` copies while the VM runs; ``cold`` stops it first; ``streaming`` boots the target before its data
    is there; ``dual-attach`` hands disks on shared storage over. Default incremental."""
    site: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Site whose movers carry the bytes. Default: the source cloud's site in whimbrel.yaml."""
    disk_format: Literal["keep", "raw", "qcow2"] | None = None
    """Format of the target's disks. Default keep."""
    placement: PlacementSection | None = None
    """As what and where the target cloud makes the VM."""
    rounds: RoundsSection | None = None
    """When rounds of changed blocks run and when they end."""
    window: WindowSection | None = None
    """When the cutover may begin."""
    stop: StopSection | None = None
    """How the source is stopped."""
    confirm: ConfirmSection | None = None
    """What ends the confirm gate besides the operator."""
    verify: VerifySection | None = None
    """How source and target are compared at the end."""
    health: HealthSection | None = None
    """Checks of the rebuilt VM."""
    stream: StreamSection | None = None
    """How a VM runs at the target before its data is there."""
    drill: DrillSection | None = None
    """A rehearsal of the migration."""
    require_drill_s: DurationS | None = Field(default=None, alias="require_drill")
    """Refuse the migration unless a drill of the VM has passed within this time: ``14d``. No default."""
    forget_source: bool | None = None
    """Mode ``dual-attach``: forget the source's VM object at confirm. Default true."""
    keep_writes: bool | None = None
    """A rollback first brings the target's writes since cutover back to the source. Default false."""
    bandwidth_bytes_per_s: Rate | None = Field(default=None, alias="bandwidth")
    """Limit of one VM's copies: ``50MB/s``, ``400Mbit/s``. No default: unlimited."""
    lanes: Annotated[int, Field(ge=1, le=8)] | None = None
    """Connections for each disk. Default 2."""
    parallel_disks: Annotated[int, Field(ge=1, le=16)] | None = None
    """Disks copied at once. Default 2."""
    ignore: tuple[Text, ...] | None = None
    """Ids of precheck rules whose blocking findings are accepted."""


class VmEntry(Settings):
    """One VM to be moved; what is given here wins over ``defaults``, mappings are added to the plan's."""

    name: Text
    """Name of the VM in the source cloud."""
    target_name: Text | None = None
    """Its name in the target cloud; the same when not given."""
    networks: Mapping | None = None
    """Source network: target network, for this VM."""
    storage: Mapping | None = None
    """Source pool: target pool, for this VM."""


class PlanFile(YamlModel):
    """A plan: which VMs move from where to where, and how."""

    version: Literal[1]
    """Version of this file's form."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
    """Name of the plan; part of every workflow's id."""
    source: Text
    """Cloud that the VMs are in, by its name in whimbrel.yaml."""
    target: Text
    """Cloud that the VMs move to."""
    networks: Mapping | None = None
    """Source network: target network; ``*`` stands for all others."""
    storage: Mapping | None = None
    """Source pool: target pool; ``*`` stands for all others."""
    defaults: Settings | None = None
    """What holds for every VM that says nothing else."""
    vms: tuple[VmEntry, ...] = Field(min_length=1)
    """The VMs."""


def plan_schema() -> str:
    """JSON schema of plan files."""
    return json_schema(PlanFile, "Whimbrel plan")
