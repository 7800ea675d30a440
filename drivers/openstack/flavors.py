"""Which flavor a rebuilt VM gets: its own by name where that fits, else the smallest that does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whimbrel.errors import InvalidPlan


def fit(flavors: Iterable[Any], *, vcpus: int, memory_bytes: int, name: str = "") -> Any:
    """The flavor. One of exactly the size wins; more is given rather than less. Raises InvalidPlan when none is enough.

    ``name`` is the flavor that the source had, when it was in a cloud of this kind.
    """
    memory_mib = -(-memory_bytes // (1 << 20))
    enough = [flavor for flavor in flavors if flavor.vcpus >= vcpus and flavor.ram >= memory_mib]
    if not enough:
        raise InvalidPlan(
            f"no flavor has {vcpus} vCPUs and {memory_mib} MiB of memory",
            action="make a flavor of this size in the target cloud, or give the project access to one",
        )

    def distance(flavor: Any) -> tuple[bool, int, int, int, bool, str]:
        exact = flavor.vcpus == vcpus and flavor.ram == memory_mib
        # servers boot from volumes, so a flavor's own disk is only wasted
        return (not exact, flavor.vcpus, flavor.ram, flavor.disk or 0, flavor.name != name, flavor.name)

    return min(enough, key=distance)
