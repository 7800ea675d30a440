"""Volume types as pools: how much room is in the backend, and in the project's quota."""

from __future__ import annotations

from typing import Any

from drivers.openstack.connection import Connection
from drivers.openstack.marks import GIB
from whimbrel.errors import NotFound, PermissionDenied
from whimbrel.model.facts import PoolFacts

UNKNOWN_GIB = 1 << 30
"""Without a quota, and without the right to ask the backends."""


def read(connection: Connection) -> list[PoolFacts]:
    """Every volume type; free is the smaller of the backend's room and what the quota leaves."""
    with connection.using("listing volume types") as conn:
        types = list(conn.block_storage.types())
        limits = conn.block_storage.get_limits().absolute
        total = limits.max_total_volume_gigabytes
        quota = UNKNOWN_GIB if total is None or total < 0 else max(total - (limits.total_gigabytes_used or 0), 0)
    backends = _backends(connection)
    found = []
    for kind in types:
        name = (kind.extra_specs or {}).get("volume_backend_name")
        room = [pool for pool in backends if name is None or pool.get("volume_backend_name") == name]
        free = max((_gib(pool.get("free_capacity_gb")) for pool in room), default=float(UNKNOWN_GIB))
        capacity = max((_gib(pool.get("total_capacity_gb")) for pool in room), default=float(UNKNOWN_GIB))
        found.append(
            PoolFacts(
                name=kind.name,
                free_bytes=int(min(free, quota, capacity) * GIB),
                capacity_bytes=int(capacity * GIB),
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


def _gib(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float(UNKNOWN_GIB)  # "infinite", "unknown"
