"""Facts with which every rule is content, and a way to change one thing in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from whimbrel.model.facts import DiskFacts, NetworkFacts, PathFacts, PoolFacts, SourceFacts, TargetFacts
from whimbrel.model.finding import PrecheckFacts
from whimbrel.model.plan import VmPlan, Window
from whimbrel.model.vm import Capabilities, DiskSpec, NicSpec, Power, VmSpec

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
GIB = 1 << 30
MIB = 1 << 20


def _can(version: str) -> Capabilities:
    return Capabilities(
        kind="libvirt",
        roles=frozenset({"source", "target"}),
        live_points=True,
        change_tracking=True,
        start_paused=True,
        handover=True,
        guest_agent=True,
        console=True,
        disk_formats=("raw", "qcow2"),
        version=version,
    )


def _vm() -> VmSpec:
    return VmSpec(
        ref="0b1c",
        name="shop-db",
        power=Power.RUNNING,
        vcpus=2,
        memory_bytes=4 * GIB,
        machine="pc-q35-9.2",
        disks=(
            DiskSpec(
                key="vda", size_bytes=20 * GIB, format="qcow2", pool="ssd", allocated_bytes=5 * GIB, trackable=True
            ),
            DiskSpec(
                key="vdb", size_bytes=10 * GIB, format="qcow2", pool="hdd", allocated_bytes=3 * GIB, trackable=True
            ),
        ),
        nics=(NicSpec(key="net0", mac="52:54:00:AA:bb:01", network="office", addresses=("10.1.0.7/24",)),),
    )


def healthy() -> PrecheckFacts:
    """A running VM with two tracked disks and one card, a roomy target, a measured path, a window tomorrow."""
    return PrecheckFacts(
        plan=VmPlan(
            plan="autumn",
            vm="shop-db",
            source="kvm-a",
            target="kvm-b",
            networks={"office": "office-b"},
            storage={"*": "fast"},
            window=Window(opens_at=NOW + timedelta(hours=10), closes_at=NOW + timedelta(hours=14)),
        ),
        source=SourceFacts(
            cloud="kvm-a",
            vm=_vm(),
            disks=(DiskFacts(key="vda"), DiskFacts(key="vdb")),
            agent_configured=True,
            agent_answers=True,
            hostname="shop-db",
            guest_os="Debian GNU/Linux 13",
            cpu_model="Skylake-Server",
            hypervisor_version="libvirt 11.3.0, QEMU 10.0.2",
            clock=NOW,
            capabilities=_can("11.3.0"),
            network_mtus={"office": 1500},
        ),
        target=TargetFacts(
            cloud="kvm-b",
            vm_names={"other": "77aa"},
            macs={"52:54:00:00:00:99": "other"},
            pools=(
                PoolFacts(name="fast", free_bytes=100 * GIB, capacity_bytes=200 * GIB, sector_bytes=512),
                PoolFacts(name="slow", free_bytes=GIB, capacity_bytes=200 * GIB),
            ),
            networks=(
                NetworkFacts(name="office-b", mtu=1500, cidrs=("10.1.0.0/24",)),
                NetworkFacts(name="lab", isolated=True),
            ),
            vcpus_max=16,
            memory_free_bytes=32 * GIB,
            memory_total_bytes=64 * GIB,
            archs=("x86_64",),
            machines=("pc-q35-9.2", "pc-q35-10.0"),
            firmwares=("bios", "uefi"),
            cpu_models=("Skylake-Server", "Haswell"),
            disk_buses=("virtio", "scsi", "sata"),
            hypervisor_version="libvirt 11.3.0, QEMU 10.0.2",
            clock=NOW + timedelta(seconds=0.2),
            capabilities=_can("11.3.0"),
        ),
        path=PathFacts(
            probed=True,
            measured_at=NOW,
            reads_source=True,
            writes_target=True,
            read_bytes_per_s=400.0 * MIB,
            write_bytes_per_s=300.0 * MIB,
            latency_s=0.002,
            clock_skew_s=0.2,
            dirty_bytes_per_s=5.0 * MIB,
            tools={"qemu-nbd": "10.0.2"},
            state_free_bytes=50 * GIB,
        ),
        stage="start",
    )


def alter(value: Any, changes: dict[str, Any]) -> Any:
    """A copy of a model, tuple or dict with the value at each dotted path replaced (``source.vm.disks.0.format``)."""
    for path, new in changes.items():
        value = _replace(value, path.split("."), new)
    return value


def _replace(value: Any, steps: list[str], new: Any) -> Any:
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if isinstance(value, BaseModel):
        if step not in type(value).model_fields:
            raise KeyError(step)
        return value.model_copy(update={step: _replace(getattr(value, step), rest, new)})
    if isinstance(value, tuple):
        index = int(step)
        return (*value[:index], _replace(value[index], rest, new), *value[index + 1 :])
    raise TypeError(f"cannot go to {step} in {value!r}")


def facts(**changes: Any) -> PrecheckFacts:
    """Healthy facts with changes; ``__`` in a keyword stands for the dot."""
    altered = alter(healthy(), {key.replace("__", "."): new for key, new in changes.items()})
    assert isinstance(altered, PrecheckFacts)
    return altered
