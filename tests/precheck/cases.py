"""For every rule: facts with which it finds something or does not know, and words that its answer must hold."""

from __future__ import annotations

from datetime import timedelta

from tests.precheck import handover_cases
from tests.precheck.case import Case
from tests.precheck.case import case_found as _found
from tests.precheck.case import case_ok as _ok
from tests.precheck.case import case_unknown as _unknown
from tests.precheck.healthy import GIB, MIB, NOW, facts
from tests.precheck.project_cases import PROJECT
from tests.precheck.streaming_cases import STREAMING
from whimbrel.model.facts import DiskFacts
from whimbrel.model.finding import Severity
from whimbrel.model.plan import (
    AgentCheck,
    CommandCheck,
    ConfirmPolicy,
    ConsoleCheck,
    HealthPolicy,
    StopPolicy,
    VerifyPolicy,
    Window,
)
from whimbrel.model.vm import Power

SOURCE_ONLY = frozenset({"source"})
TARGET_ONLY = frozenset({"target"})
GONE = facts(source__vm=None)
NO_TARGET = facts(target__reachable=False, target__unreachable_why="connection refused")


COLD = {"plan__mode": "cold"}
OFF = {"source__vm__power": Power.OFF}
COMMAND = HealthPolicy(checks=(CommandCheck(argv=("check-shop", "--fast")),))

SOURCE = (
    _found("source.found", GONE, "kvm-a has no VM shop-db"),
    _unknown("source.found", facts(source__vm=None, source__reachable=False), "does not answer"),
    _unknown("source.found", facts(source__vm=None, source__same_name=("a", "b")), "which VM shop-db means"),
    _found("source.unique", facts(source__same_name=("0b1c", "0b1d")), "2 VMs fit shop-db", "0b1c, 0b1d", "reference"),
    _unknown("source.unique", GONE),
    _found("source.not-migrated", facts(source__vm__owner_migration="ab12cd34ef"), "ab12cd34ef"),
    _found(
        "source.rebuild",
        facts(source__rebuild_changes=("disk xvda: bus xen becomes virtio", "machine: xenfv becomes pc")),
        "xvda",
        "xenfv",
        "virtio",
    ),
    _found("source.rebuild", facts(source__rebuild_blockers=("disk xvda1",)), "xvda1", severity=Severity.BLOCK),
    _ok("source.rebuild", facts()),
    _found("source.mode", facts(source__capabilities__live_points=False), "mode: cold"),
    _found("source.mode", facts(source__capabilities__roles=TARGET_ONLY), "cannot be a source"),
    _ok("source.mode", facts(source__capabilities__live_points=False, **COLD)),
    _unknown("source.mode", facts(source__capabilities=None)),
    _found("source.power", facts(**OFF), "mode: cold"),
    _found("source.power", facts(source__vm__power=Power.PAUSED), "paused"),
    _found("source.power", facts(source__vm__power=Power.CRASHED, **COLD), "crashed"),
    _found("source.power", facts(stage="cutover", **OFF), "stopped since", severity=Severity.WARN),
    _ok("source.power", facts(**OFF, **COLD), "off"),
    _ok("source.power", facts(**COLD), "running"),
    _unknown("source.power", facts(source__vm__power=Power.UNKNOWN)),
    _found("source.not-suspended", facts(source__managed_save=True), "managed save"),
    _found("source.not-suspended", facts(source__vm__power=Power.SUSPENDED), "suspended"),
    _found("source.locked", facts(source__locked="the server is locked: audit"), "locked: audit", "unlock"),
    _unknown("source.locked", GONE),
    _found("source.running-job", facts(source__running_job="backup (virtnbdbackup)"), "virtnbdbackup"),
    _unknown("source.running-job", GONE),
    _found("source.snapshots", facts(source__snapshots=("before", "after")), "2 snapshots", "before, after"),
    _found("source.definition-pending", facts(source__definition_pending=True), "stored one"),
    _found("source.agent", facts(source__agent_answers=False), "nothing answers"),
    _found("source.agent", facts(source__agent_answers=False, source__agent_configured=False), "no guest agent"),
    _ok("source.agent", facts(source__agent_answers=False, **OFF), "not running"),
    _found("source.tpm", facts(source__tpm=True), "stays at the source", "recovery keys"),
    _found("source.passthrough", facts(source__passthrough=("pci 0000:3b:00.0",)), "0000:3b:00.0"),
    _found("source.shared-filesystems", facts(source__shared_filesystems=("/srv/media",)), "/srv/media"),
    _found("source.placement", facts(source__cpu_pinning=True, source__watchdog=True), "CPU pinning, watchdog"),
    _found("source.autostart", facts(source__vm__autostart=True), "twice"),
    _found("source.hostname", facts(source__hostname="localhost"), "'localhost'"),
    _unknown("source.hostname", facts(source__hostname=None), "agent"),
    _found("source.guest-os", facts(source__guest_os="Microsoft Windows 11"), "Fast", "/h off", severity=Severity.WARN),
    _unknown("source.guest-os", facts(source__guest_os=None)),
    _found("source.permissions", facts(source__can_act=False), "read-only"),
    _found("source.vm-shape", facts(source__vm__vcpus=0), "0 vCPUs"),
    _found("source.vm-shape", facts(source__vm__memory_bytes=0), "0 bytes"),
)

DISKS = (
    _found("disk.present", facts(source__vm__disks=()), "no writable disk"),
    _unknown("disk.present", GONE),
    _found("disk.size", facts(source__vm__disks__1__size_bytes=0), "vdb (0 bytes)"),
    _found("disk.size", facts(source__vm__disks__0__size_bytes=1000), "vda (1000 bytes)"),
    _found("disk.format", facts(source__vm__disks__0__format="other"), "vda", "qcow2"),
    _found(
        "disk.target-format", facts(target__capabilities__disk_formats=("raw",)), "vda as qcow2", "disk_format: raw"
    ),
    _ok("disk.target-format", facts(source__vm__disks__0__format="qcow2-v2"), "vda as qcow2"),
    _unknown("disk.target-format", facts(target__capabilities=None)),
    _found(
        "disk.tracking",
        facts(source__vm__disks__1__format="raw", source__vm__disks__1__trackable=False),
        "vdb (raw)",
        "3 GiB",
        "7.7 s",
        "compat 1.1",
    ),
    _found(
        "disk.tracking",
        facts(source__vm__disks__1__trackable=False, path__read_bytes_per_s=None),
        "assumed 200 MB/s",
    ),
    _found("disk.tracking", facts(source__capabilities__change_tracking=False), "vda", "vdb", "8 GiB"),
    _ok("disk.tracking", facts(source__vm__disks__1__trackable=False, **COLD)),
    _unknown("disk.tracking", facts(source__capabilities=None)),
    _found("disk.tracking-stale", facts(source__disks__0__stale_tracking=("virtnbdbackup.3",)), "vda: virtnbdbackup.3"),
    _found(
        "disk.tracking-stale",
        facts(source__disks__0__stale_tracking=("virtnbdbackup.3",), **COLD),
        severity=Severity.INFO,
    ),
    _unknown("disk.tracking-stale", facts(source__disks=()), "vda, vdb"),
    _found("disk.tracking-foreign", facts(source__disks__1__foreign_tracking=("nightly",)), "vdb: nightly", "full"),
    _unknown("disk.tracking-foreign", facts(source__disks=())),
    _found("disk.chain-complete", facts(source__disks__1__chain_complete=False), "vdb"),
    _unknown("disk.chain-complete", facts(source__disks=())),
    _found("disk.chain-owned", facts(source__disks__0__image_shared_with=("shop-web",)), "vda with shop-web"),
    _found(
        "disk.chain-owned",
        facts(source__disks__0__chain_shared_with=("shop-web",)),
        "template",
        severity=Severity.WARN,
    ),
    _unknown("disk.chain-owned", facts(source__disks=())),
    _found("disk.shareable", facts(source__vm__disks__0__shareable=True), "vda"),
    _ok("disk.shareable", facts(source__vm__disks__0__shareable=True, source__vm__disks__0__read_only=True)),
    _found("disk.read-only", facts(source__vm__disks__0__read_only=True), "vda"),
    _found("disk.cdrom-media", facts(source__cdroms_with_media=("sda: debian.iso",)), "debian.iso"),
    _found("disk.encrypted", facts(source__disks__1__encrypted=True), "vdb", "in the clear"),
    _unknown("disk.encrypted", facts(source__disks=())),
    _found("disk.sector-size", facts(source__disks__0__sector_bytes=4096), "vda has 4096-byte", "fast 512-byte"),
    _unknown("disk.sector-size", facts(target__pools__0__sector_bytes=None)),
    _found("disk.internal-snapshots", facts(source__disks__0__internal_snapshots=2), "vda (2)"),
    _unknown("disk.internal-snapshots", facts(source__disks=())),
    _found("disk.bus", facts(source__vm__disks__1__bus="ide"), "vdb (ide)"),
    _unknown("disk.bus", facts(target__disk_buses=())),
)

NETWORKS = (
    _found("network.mapped", facts(plan__networks={}), "no target network for office"),
    _ok("network.mapped", facts(plan__networks={"*": "office-b"}), "office -> office-b"),
    _unknown("network.mapped", GONE),
    _found("network.exists", facts(plan__networks={"*": "offiec"}), "no network offiec", "lab, office-b"),
    _unknown("network.exists", NO_TARGET),
    _found("network.active", facts(target__networks__0__active=False), "office-b", "net-start"),
    _unknown("network.active", NO_TARGET),
    _found("network.mac", facts(target__macs={"52:54:00:aa:bb:01": "clone"}), "52:54:00:AA:bb:01 by clone"),
    _unknown("network.mac", NO_TARGET),
    _found(
        "network.one-per-mac",
        facts(source__vm__nics=(facts().source.vm.nics[0],) * 2),  # type: ignore[union-attr]
        "52:54:00:aa:bb:01",
    ),
    _found("network.mtu", facts(source__network_mtus={"office": 9000}), "net0: 9000 at office, 1500 at office-b"),
    _unknown("network.mtu", facts(target__networks__0__mtu=None)),
    _found("network.link", facts(source__vm__nics__0__link_up=False), "net0"),
    _found("network.addresses", facts(source__vm__nics__0__addresses=("192.0.2.5",)), "192.0.2.5 outside office-b"),
    _ok("network.addresses", facts(source__vm__nics__0__addresses=("10.1.0.9/24", "fe80::1%eth0")), "1 addresses"),
    _unknown("network.addresses", facts(source__vm__nics__0__addresses=())),
    _unknown("network.addresses", facts(source__vm__nics__0__addresses=("nonsense",)), "rule itself failed"),
    _found("network.filters", facts(source__network_filters=("clean-traffic",)), "clean-traffic"),
    _found("network.filters", facts(source__bandwidth_limits=("net0 100 Mbit/s",)), "net0 100 Mbit/s"),
    _found("network.isolated", facts(plan__networks={"*": "lab"}), "lab"),
    _unknown("network.isolated", NO_TARGET),
)

CAPACITY = (
    _found("target.role", facts(target__capabilities__roles=SOURCE_ONLY), "only be a source"),
    _unknown("target.role", facts(target__capabilities=None)),
    _found("target.permissions", facts(target__can_create=False), "may not create"),
    _unknown("target.permissions", NO_TARGET),
    _found(
        "target.name-free",
        facts(target__vm_names={"shop-db": "1", "shop-db-2": "2"}),
        "has a VM shop-db already",
        "target_name: shop-db-3",
    ),
    _ok("target.name-free", facts(target__vm_names={"shop-db": "1"}, plan__target_name="shop-db-new")),
    _unknown("target.name-free", NO_TARGET),
    _found("target.name-legal", facts(source__vm__name="shop/db"), "'shop/db'", "target_name: shop-db"),
    _found("target.name-legal", facts(plan__target_name=" "), "target_name: vm"),
    _unknown("target.name-legal", GONE),
    _found("storage.mapped", facts(plan__storage={"ssd": "fast"}), "vdb in hdd"),
    _ok("storage.mapped", facts(plan__storage={"ssd": "fast", "hdd": "slow"}), "vda -> fast, vdb -> slow"),
    _found("storage.exists", facts(plan__storage={"*": "fats"}), "no pool fats", "fast, slow"),
    _unknown("storage.exists", NO_TARGET),
    _found("storage.active", facts(target__pools__0__active=False), "fast", "pool-start"),
    _unknown("storage.active", NO_TARGET),
    _found("storage.free-space", facts(target__pools__0__free_bytes=7 * GIB), "fast needs 8 GiB and has 7 GiB"),
    _found("storage.free-space", facts(plan__storage={"ssd": "fast", "hdd": "slow"}), "slow needs 3 GiB and has 1 GiB"),
    _found("storage.free-space", facts(stage="cutover", target__pools__0__free_bytes=100 * MIB), "300 MiB"),
    _ok("storage.free-space", facts(stage="cutover", target__pools__0__free_bytes=GIB), "1 GiB free"),
    _ok(
        "storage.free-space",
        facts(
            stage="cutover",
            target__pools__0__free_bytes=0,
            source__vm__disks__0__allocated_bytes=20 * GIB,
            source__vm__disks__1__allocated_bytes=None,
        ),
        "0 B needed",
    ),
    _unknown("storage.free-space", facts(plan__storage={"*": "nowhere"})),
    _found("storage.headroom", facts(target__pools__0__free_bytes=20 * GIB), "fast would need 30 GiB and has 20 GiB"),
    _unknown("storage.headroom", NO_TARGET),
    _found("target.vcpus", facts(source__vm__vcpus=32), "32 vCPUs", "allows 16"),
    _unknown("target.vcpus", facts(target__vcpus_max=None)),
    _found("target.memory", facts(source__vm__memory_bytes=96 * GIB), "96 GiB", "64 GiB in all"),
    _found("target.memory", facts(source__vm__memory_bytes=48 * GIB), "32 GiB are free", severity=Severity.WARN),
    _unknown("target.memory", facts(target__memory_free_bytes=None, target__memory_total_bytes=None)),
    _found("target.arch", facts(source__vm__arch="aarch64"), "aarch64", "runs x86_64"),
    _unknown("target.arch", facts(target__archs=())),
    _found("target.cpu-model", facts(source__cpu_model="SapphireRapids"), "SapphireRapids"),
    _ok("target.cpu-model", facts(source__cpu_model="host-passthrough", target__cpu_models=())),
    _unknown("target.cpu-model", facts(target__cpu_models=())),
    _found("target.machine", facts(source__vm__machine="pc-q35-11.0"), "pc-q35-11.0"),
    _unknown("target.machine", facts(target__machines=())),
    _unknown("target.machine", facts(source__vm__machine="")),
    _found("target.firmware", facts(source__vm__firmware="uefi-secure"), "boots by uefi-secure", "bios, uefi"),
    _unknown("target.firmware", NO_TARGET),
    _found("target.leftovers", facts(target__leftovers=("volume web-vda-0a0a0a0a0a",)), "1 objects", "web-vda"),
    _unknown("target.leftovers", NO_TARGET),
)

CONNECTIVITY = (
    _found("connect.different-clouds", facts(plan__target="kvm-a"), "both kvm-a"),
    _found("connect.source", facts(source__reachable=False, source__unreachable_why="refused"), "refused"),
    _found("connect.target", NO_TARGET, "connection refused"),
    _found("connect.clocks", facts(path__clock_skew_s=-90.0), "1 min 30 s apart"),
    _found("connect.clocks", facts(path__clock_skew_s=None, target__clock=NOW + timedelta(seconds=7)), "7 s"),
    _unknown("connect.clocks", facts(path__clock_skew_s=None, target__clock=None)),
    _found("connect.versions", facts(target__hypervisor_version="libvirt 11.3.0, QEMU 9.2.4"), "QEMU 9.2.4"),
    _unknown("connect.versions", facts(target__hypervisor_version="")),
    _found("path.read", facts(path__reads_source=False, path__why_not="TLS: bad certificate"), "bad certificate"),
    _unknown("path.read", facts(path__probed=False)),
    _unknown(
        "path.read",
        facts(path__reads_source=False, source__capabilities__live_points=False, **COLD),
        "disks of stopped VMs only",
    ),
    _found(
        "path.read",
        facts(path__reads_source=False, source__capabilities__live_points=False, **COLD, **OFF),
        "no bytes from",
    ),
    _found("path.write", facts(path__writes_target=False), "kvm-b"),
    _unknown("path.write", facts(path__probed=False)),
    _found("path.bandwidth", facts(path__write_bytes_per_s=2.0 * MIB), "2 MiB/s", "nearer"),
    _found("path.bandwidth", facts(plan__bandwidth_bytes_per_s=1.0 * MIB), "limit of the plan", "raise bandwidth"),
    _ok("path.bandwidth", facts(), "300 MiB/s"),
    _unknown("path.bandwidth", facts(path__read_bytes_per_s=None, path__write_bytes_per_s=None)),
    _found("path.balance", facts(path__write_bytes_per_s=50.0 * MIB), "writes 50 MiB/s", "reads 400 MiB/s"),
    _unknown("path.balance", facts(path__write_bytes_per_s=None)),
    _found("path.latency", facts(path__latency_s=0.25), "250 ms", "lanes"),
    _unknown("path.latency", facts(path__latency_s=None)),
    _found("path.tools", facts(path__tools={"qemu-img": "", "qemu-nbd": "10.0"}), "qemu-img", "doctor"),
    _unknown("path.tools", facts(path__tools={})),
    _found("path.state-space", facts(path__state_free_bytes=10 * MIB), "15 MiB", "10 MiB are free"),
    _unknown("path.state-space", facts(path__state_free_bytes=None)),
)

POLICY = (
    _found("forecast.converges", facts(path__dirty_bytes_per_s=290.0 * MIB), "290 MiB/s", "300 MiB/s"),
    _ok("forecast.converges", facts(path__dirty_bytes_per_s=None, **COLD)),
    _unknown("forecast.converges", facts(path__dirty_bytes_per_s=None)),
    _found("forecast.baseline", facts(plan__bandwidth_bytes_per_s=1.0 * MIB), "2 h 17 min", "8 GiB at 1 MiB/s"),
    _ok("forecast.baseline", facts(), "27.3 s for 8 GiB at 300 MiB/s"),
    _unknown("forecast.baseline", facts(path__read_bytes_per_s=None, path__write_bytes_per_s=None)),
    _found("forecast.outage", facts(plan__rounds__outage_budget_s=20.0), "budget of 20 s", "26.7 s"),
    _found(
        "forecast.outage", facts(source__vm__disks__0__trackable=False, path__read_bytes_per_s=64.0 * MIB), "budget"
    ),
    _found("forecast.outage", facts(plan__bandwidth_bytes_per_s=1.0 * MIB, **COLD), "off for", severity=Severity.INFO),
    _unknown("forecast.outage", facts(path__dirty_bytes_per_s=None)),
    _found("window.open", facts(plan__window=Window(closes_at=NOW - timedelta(minutes=3))), "3 min ago"),
    _ok("window.open", facts(plan__window=Window()), "no end"),
    _unknown("window.open", facts(path__measured_at=None, source__clock=None, target__clock=None)),
    _found("window.length", facts(plan__window=Window(closes_at=NOW + timedelta(seconds=20))), "leaves 20 s", "26.7 s"),
    _found(
        "window.length",
        facts(plan__window=Window(opens_at=NOW + timedelta(hours=1), closes_at=NOW + timedelta(hours=1, seconds=9))),
        "leaves 9 s",
    ),
    _ok("window.length", facts(plan__window=Window(opens_at=NOW)), "no end"),
    _unknown("window.length", facts(path__dirty_bytes_per_s=None)),
    _found("window.reach", facts(plan__bandwidth_bytes_per_s=0.1 * MIB), "after the window"),
    _unknown("window.reach", facts(path__read_bytes_per_s=None, path__write_bytes_per_s=None)),
    _found("stop.graceful", facts(plan__stop=StopPolicy(graceful_timeout_s=0)), "without being asked"),
    _found("health.commands", facts(plan__health=COMMAND, path__commands={"check-shop": ""}), "cannot run check-shop"),
    _ok("health.commands", facts(plan__health=COMMAND, path__commands={"check-shop": "/usr/bin/check-shop"}), "/usr"),
    _unknown("health.commands", facts(plan__health=COMMAND)),
    _found(
        "health.possible",
        facts(plan__health=HealthPolicy(checks=(ConsoleCheck(pattern="login:"),)), target__capabilities__console=False),
        "no console",
    ),
    _found(
        "health.possible",
        facts(plan__health=HealthPolicy(checks=(AgentCheck(),)), source__agent_configured=False),
        "no agent channel",
    ),
    _found(
        "health.possible",
        facts(plan__health=HealthPolicy(checks=(AgentCheck(),)), target__capabilities__guest_agent=False),
        "cannot talk to guest agents",
    ),
    _ok("health.possible", facts(plan__health=HealthPolicy(checks=(AgentCheck(),))), "agent"),
    _unknown(
        "health.possible",
        facts(plan__health=HealthPolicy(checks=(AgentCheck(),)), target__capabilities=None),
    ),
    _found(
        "health.timeouts",
        facts(plan__confirm=ConfirmPolicy(then="auto_rollback", after_s=60.0)),
        "auto_rollback after 1 min",
        "5 min",
    ),
    _ok("health.timeouts", facts(plan__confirm=ConfirmPolicy(then="auto_confirm", after_s=3600.0)), "1 h"),
    _found(
        "confirm.checked", facts(plan__confirm=ConfirmPolicy(then="auto_confirm", after_s=3600.0)), "only that it runs"
    ),
    _found("verify.cost", facts(path__write_bytes_per_s=1.0 * MIB), "2 h 17 min for 8 GiB"),
    _ok("verify.cost", facts(plan__verify=VerifyPolicy(mode="sampled", sample_fraction=0.25)), "2 GiB (sampled"),
    _unknown("verify.cost", facts(path__read_bytes_per_s=None)),
    _found("verify.no-outage", facts(target__capabilities__start_paused=False), "when: before_boot"),
    _ok(
        "verify.no-outage",
        facts(target__capabilities__start_paused=False, target__capabilities__points_outlive_start=True),
        "before the target's first write",
    ),
    _found("verify.no-outage", facts(plan__verify=VerifyPolicy(when="before_boot")), severity=Severity.INFO),
    _unknown("verify.no-outage", facts(target__capabilities=None)),
    _found("keep-writes.tracked", facts(plan__keep_writes=True, plan__disk_format="raw"), "vda, vdb", "qcow2"),
    _found(
        "keep-writes.tracked",
        facts(plan__keep_writes=True, target__capabilities__change_tracking=False),
        "every disk",
    ),
    _ok("keep-writes.tracked", facts(plan__keep_writes=True), "are tracked"),
    _unknown("keep-writes.tracked", facts(plan__keep_writes=True, target__capabilities=None)),
    _found(
        "keep-writes.way-back",
        facts(plan__keep_writes=True, target__capabilities__roles=TARGET_ONLY),
        "kvm-b cannot be read",
    ),
    _found(
        "keep-writes.way-back",
        facts(plan__keep_writes=True, source__capabilities__roles=SOURCE_ONLY),
        "kvm-a cannot be written",
    ),
    _found(
        "keep-writes.way-back",
        facts(plan__keep_writes=True, source__disks=(DiskFacts(key="vda", writable=False),)),
        "vda cannot be written",
    ),
    _unknown("keep-writes.way-back", facts(plan__keep_writes=True, source__capabilities=None)),
    _found("plan.ignore-known", facts(plan__ignore=("disk.shareabel",)), "disk.shareabel", "mean disk.shareable?"),
    _ok("plan.ignore-known", facts(plan__ignore=("disk.shareable",)), "1 rules"),
)

HANDOVER: tuple[Case, ...] = (
    *(_found(rule, given, *says) for rule, given, says in handover_cases.FOUND),
    *(_unknown(rule, given) for rule, given in handover_cases.UNKNOWN),
)

CASES: tuple[Case, ...] = (
    *SOURCE,
    *DISKS,
    *NETWORKS,
    *CAPACITY,
    *CONNECTIVITY,
    *POLICY,
    *HANDOVER,
    *STREAMING,
    *PROJECT,
)
