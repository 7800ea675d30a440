"""Facts that prechecks judge: gathered once by activities, judged by pure functions."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from whimbrel.model.endpoint import Frozen
from whimbrel.model.quota import Limits, VmSize
from whimbrel.model.vm import Capabilities, Firmware, VmSpec


class AccessFacts(Frozen):
    """How far the credentials and the mover reach."""

    why_refused: str = ""
    """The cloud answers and does not let these credentials in, or has not what the settings name."""
    roles: tuple[str, ...] = ()
    """What the credentials are, as the cloud calls it."""
    ends_at: datetime | None = None
    """When the credentials end and cannot renew themselves; None: they do not."""
    too_old: tuple[str, ...] = ()
    """Services whose API is older than what is needed, with both versions."""
    storage_unreached: tuple[str, ...] = ()
    """Pools behind the volumes that the mover cannot open, and why."""
    mover_lacks: tuple[str, ...] = ()
    """What servers of ours in the cloud would need, and is not there or does not fit."""


class DiskFacts(Frozen):
    """What is particular about one source disk."""

    key: str
    writable: bool = True
    """It can be written while the VM is off and has it."""
    chain_complete: bool = True
    """Every backing image could be opened."""
    chain_shared_with: tuple[str, ...] = ()
    """Other VMs that use an image below this disk's top one (linked clones of a template)."""
    image_shared_with: tuple[str, ...] = ()
    """Other VMs that have this very image (the top one) as a disk."""
    stale_tracking: tuple[str, ...] = ()
    """Checkpoints or bitmaps that are damaged or that metadata and disk disagree about."""
    foreign_tracking: tuple[str, ...] = ()
    """Checkpoints or bitmaps of other tools."""
    sector_bytes: int = 512
    internal_snapshots: int = 0
    encrypted: bool = False


class SourceFacts(Frozen):
    """A VM to be moved and the cloud it is on."""

    cloud: str
    reachable: bool = True
    unreachable_why: str = ""
    vm: VmSpec | None = None
    same_name: tuple[str, ...] = ()
    """Refs of all VMs that the plan's name fits, when more than one."""
    disks: tuple[DiskFacts, ...] = ()
    passthrough: tuple[str, ...] = ()
    """PCI, USB, SR-IOV, mediated or host devices."""
    tpm: bool = False
    cdroms_with_media: tuple[str, ...] = ()
    shared_filesystems: tuple[str, ...] = ()
    cpu_pinning: bool = False
    cpu_model: str | None = None
    numa: bool = False
    watchdog: bool = False
    snapshots: tuple[str, ...] = ()
    running_job: str | None = None
    """A backup, block or migration job that is not ours."""
    locked: str = ""
    """Somebody keeps the VM from being stopped and started, and these credentials cannot override it; in words."""
    managed_save: bool = False
    agent_configured: bool = False
    agent_answers: bool = False
    hostname: str | None = None
    guest_os: str | None = None
    definition_pending: bool = False
    """The running definition differs from the one the next start would use."""
    hypervisor_version: str = ""
    clock: datetime | None = None
    capabilities: Capabilities | None = None
    bandwidth_limits: tuple[str, ...] = ()
    network_filters: tuple[str, ...] = ()
    network_mtus: dict[str, int] = Field(default_factory=dict)
    """Source network -> MTU, where it is known."""
    rebuild_changes: tuple[str, ...] = ()
    """What the rebuilt VM has otherwise, because its hypervisor is of another kind (Xen), in words."""
    rebuild_blockers: tuple[str, ...] = ()
    """What of the VM no target of this kind can have, in words."""
    can_act: bool = True
    """Credentials allow points in time and power (a read-only connection does not)."""
    limits: Limits = Limits()
    """What points in time count against."""
    address_pairs: tuple[str, ...] = ()
    """Addresses that cards may use besides their own: of clusters, routers, virtual IPs."""
    floating_addresses: tuple[str, ...] = ()
    """Addresses outside that the cloud leads to the VM."""
    access: AccessFacts = AccessFacts()


class PoolFacts(Frozen):
    """A storage pool or volume type, measured now."""

    name: str
    free_bytes: int | None
    """None: these credentials may not ask."""
    capacity_bytes: int | None
    active: bool = True
    provisionable_bytes: int | None = None
    """Sum of sizes that new volumes may have, thin ones too, before the cloud places none any more; None: not known."""
    sector_bytes: int | None = None
    """Logical sector size that guests would see, where the cloud knows it."""


class NetworkFacts(Frozen):
    """A network that a NIC can be plugged into."""

    name: str
    active: bool = True
    isolated: bool = False
    mtu: int | None = None
    cidrs: tuple[str, ...] = ()
    fixed: bool | None = None
    """Whether these credentials may choose MAC and address of a card there; None: not known."""
    filters: tuple[str, ...] = ()
    """Packet filters that new cards get unasked (the default security group)."""


class ServerGroup(Frozen):
    """VMs of one group lie on one host, or each on another one, as its policy says."""

    name: str
    policy: str
    members: int
    members_max: int | None = None
    """None: not known, or not limited."""


class TargetFacts(Frozen):
    """The cloud that a VM is to be rebuilt on."""

    cloud: str
    reachable: bool = True
    unreachable_why: str = ""
    vm_names: dict[str, str] = Field(default_factory=dict)
    """Name -> ref of VMs that exist."""
    macs: dict[str, str] = Field(default_factory=dict)
    """MAC (lower case) -> VM name."""
    pools: tuple[PoolFacts, ...] = ()
    networks: tuple[NetworkFacts, ...] = ()
    vcpus_max: int | None = None
    """Most vCPUs that one VM may have."""
    memory_free_bytes: int | None = None
    memory_total_bytes: int | None = None
    archs: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    firmwares: tuple[Firmware, ...] = ("bios",)
    cpu_models: tuple[str, ...] = ()
    """Named CPU models usable here; empty when the cloud cannot tell."""
    disk_buses: tuple[str, ...] = ()
    hypervisor_version: str = ""
    clock: datetime | None = None
    capabilities: Capabilities | None = None
    leftovers: tuple[str, ...] = ()
    """Objects of earlier migrations that were not handed over."""
    can_create: bool = True
    """Credentials allow making VMs and volumes (a read-only connection does not)."""
    limits: Limits = Limits()
    sizes: tuple[VmSize, ...] = ()
    """Sizes that VMs come in; empty where any size is built."""
    zones: tuple[str, ...] = ()
    """Availability zones that take VMs now; empty where the cloud has none."""
    groups: tuple[ServerGroup, ...] = ()
    """Server groups of the project; empty where the cloud has none."""
    access: AccessFacts = AccessFacts()


class FitFacts(Frozen):
    """What the target says about this very VM, asked before anything of it is there."""

    asked: bool = False
    """The cloud places VMs on hosts of its choice, and was asked about them."""
    hosts: dict[str, int] | None = None
    """Zone -> hosts that could take the VM now; None: these credentials may not ask."""
    hosts_free: tuple[int, int] | None = None
    """vCPUs, and bytes of memory, that those hosts have free together."""
    unfit_traits: tuple[str, ...] = ()
    """Properties of the VM that no host with room has, in words."""
    taken: dict[str, str] = Field(default_factory=dict)
    """NIC key -> who has its MAC or address on the target network, as far as it can be seen."""
    ports_tried: bool = False
    """Each card's port was made at the target, and removed again."""
    ports_refused: dict[str, str] = Field(default_factory=dict)
    """NIC key -> what was said to that."""


class HandoverFacts(Frozen):
    """Whether both clouds see the same disks on one storage: mode dual-attach."""

    looked: bool = False
    """Both sides were asked; without it nothing below is known."""
    marked: bool = False
    """Notes were written to the storage by one side and looked for by the other."""
    why_not: str = ""
    apart: tuple[str, ...] = ()
    """Pairs of pools of which one side does not see what the other has written."""
    outside: tuple[str, ...] = ()
    """Images, of chains too, that lie in no pool that the plan maps."""
    unlike: tuple[str, ...] = ()
    """Disks that the target does not see as the source does, and why."""
    openers: tuple[str, ...] = ()
    """Who has an image open besides the VM itself."""
    users: tuple[str, ...] = ()
    """VMs at the target that have an image in their definition."""
    taken: str = ""
    """Migration that has taken the VM's disks already."""


class PathFacts(Frozen):
    """The way the bytes will take, tried with real bytes."""

    probed: bool = False
    measured_at: datetime | None = None
    """When these facts were gathered, by the mover's clock."""
    reads_source: bool = False
    writes_target: bool = False
    why_not: str = ""
    read_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None
    latency_s: float | None = None
    clock_skew_s: float | None = None
    dirty_bytes_per_s: float | None = None
    """Measured rate at which the guest touches new blocks, where tracking allowed it."""
    tools: dict[str, str] = Field(default_factory=dict)
    """Versions of what the mover runs on."""
    state_free_bytes: int | None = None
    """Free space where manifests are kept."""
    target_file_seen: bool | None = None
    """The mover opens the target's volumes under their path; None: not tried (only streaming needs it)."""
    import_blockers: tuple[str, ...] = ()
    """Why the target's storage cannot import volumes of the plan's pools from this mover (``ImportPort.blockers``)."""
    import_tried: bool | None = None
    """A volume was imported from this mover and opened by the target; None: not tried (only imports need it)."""
    import_why_not: str = ""
    drilled_at: datetime | None = None
    """When the newest passed drill of the VM ended."""
    traces: int = 0
    """Recorded reads of the VM that prefetch can use."""
    commands: dict[str, str] = Field(default_factory=dict)
    """Program of each command check of the plan -> its path on the worker; empty when it cannot be run."""
