"""Which flavor a rebuilt VM gets: its own by name where that fits, else the smallest that does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whimbrel.errors import InvalidPlan, NotFound
from whimbrel.model.quota import VmSize, fitting
from whimbrel.model.vm import VmSpec

SPECIAL = ("pci_passthrough:", "resources:", "hw:cpu_policy", "hw:mem_page_size", "hw:vgpu", "hw:tpm_version")
"""Extra specs of flavors that give what is scarce: GPUs, dedicated CPUs, huge pages."""
PLAIN_RESOURCES = ("resources:VCPU", "resources:MEMORY_MB", "resources:DISK_GB")


def size_of(flavor: Any) -> VmSize:
    """A flavor as a size."""
    extra = flavor.extra_specs or {}
    special = sorted(
        f"{key}={value}"
        for key, value in extra.items()
        if key.startswith(SPECIAL) and key not in PLAIN_RESOURCES and value not in {"shared", "small", "any"}
    )
    return VmSize(
        id=flavor.id,
        name=flavor.name,
        vcpus=flavor.vcpus or 0,
        memory_bytes=(flavor.ram or 0) << 20,
        disk_bytes=(flavor.disk or 0) << 30,
        special=tuple(special),
    )


def wanted(flavors: Iterable[Any], vm: VmSpec, size: str | None) -> Any:
    """The flavor that a plan names, else the one that fits the VM. Raises NotFound, InvalidPlan."""
    if size is None:
        return fit(flavors, vcpus=vm.vcpus, memory_bytes=vm.memory_bytes, name=vm.size_name)
    named = next((flavor for flavor in flavors if flavor.name == size), None)
    if named is None:
        raise NotFound(f"there is no flavor {size}", action="correct placement.sizes in the plan, or make the flavor")
    return named


def fit(flavors: Iterable[Any], *, vcpus: int, memory_bytes: int, name: str = "") -> Any:
    """The flavor, by ``whimbrel.model.quota.fitting``. Raises InvalidPlan when none is enough.

    ``name`` is the flavor that the source had, when it was in a cloud of this kind.
    """
    known = {flavor.id: flavor for flavor in flavors}
    # memory is asked for in whole MiB
    wanted = -(-memory_bytes // (1 << 20)) << 20
    size = fitting(map(size_of, known.values()), vcpus=vcpus, memory_bytes=wanted, name=name)
    if size is None:
        raise InvalidPlan(
            f"no flavor has {vcpus} vCPUs and {wanted >> 20} MiB of memory",
            action="make a flavor of this size in the target cloud, or give the project access to one",
        )
    return known[size.id]
