"""Volume types as pools: how much room is in the backend, and in the project's quota."""

from __future__ import annotations

from typing import Any

from drivers.openstack.connection import Connection
from drivers.openstack.marks import GIB
from whimbrel.errors import NotFound, PermissionDenied
from whimbrel.model.facts import PoolFacts


def read(connection: Connection) -> list[PoolFacts]:
    """Every volume type with the room of its backends; None where these credentials may not ask for it."""
    with connection.using("listing volume types") as conn:
        types = list(conn.block_storage.types())
    backends = _backends(connection)
    found = []
    for kind in types:
        name = (kind.extra_specs or {}).get("volume_backend_name")
        room = [pool for pool in backends if name is None or pool.get("volume_backend_name") == name]
        found.append(
            PoolFacts(
                name=kind.name,
                free_bytes=_most(room, "free_capacity_gb"),
                capacity_bytes=_most(room, "total_capacity_gb"),
                provisionable_bytes=_provisionable(room),
                sector_bytes=512,
            )
        )
    return found


def _backends(connection: Connection) -> list[dict[str, Any]]:
    """What the scheduler knows; nothing for a user that may not ask."""
    try:
        with connection.using("asking for the backends' room") as conn:
            return [dict(pool.capabilities or {}) for pool in conn.block_storage.backend_pools(detail=True)]
    except (PermissionDenied, NotFound):
        return []


def _most(room: list[dict[str, Any]], key: str) -> int | None:
    """The largest of the backends, as a volume lies in one; None where no backend tells a number."""
    told = [number for pool in room if (number := _number(pool.get(key))) is not None]
    return int(max(told) * GIB) if told else None


def _provisionable(room: list[dict[str, Any]]) -> int | None:
    """Sizes of volumes that the scheduler still places: its capacity filter's sum for thin pools."""
    left = []
    for pool in room:
        total, given = _number(pool.get("total_capacity_gb")), _number(pool.get("provisioned_capacity_gb"))
        ratio = _number(pool.get("max_over_subscription_ratio"))
        if pool.get("thin_provisioning_support") and None not in {total, given, ratio}:
            assert total is not None
            assert given is not None
            assert ratio is not None
            left.append(max(total * ratio - given, 0.0))
    return int(sum(left) * GIB) if left and len(left) == len(room) else None


def _number(value: object) -> float | None:
    """None for "infinite", "unknown", "auto" and nothing."""
    try:
        return float(str(value))
    except ValueError:
        return None
