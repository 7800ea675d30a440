"""The project's quotas in Nova, Cinder and Neutron, as one set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openstack import exceptions as sdk

from drivers.openstack import marks
from drivers.openstack.connection import Connection
from whimbrel.errors import NotFound, PermissionDenied
from whimbrel.model.quota import Limits, Quota, Resource

CINDER: dict[str, tuple[Resource, int]] = {
    "volumes": ("volumes", 1),
    "gigabytes": ("volume space", marks.GIB),
    "snapshots": ("snapshots", 1),
}
"""Cinder's name, ours, and the unit. With ``_<volume type>`` behind it the limit is that type's alone."""


def read(connection: Connection, volumes: Iterable[Any] = ()) -> Limits:
    """All limits; what the credentials may not ask is left out. ``volumes`` are the project's."""
    sizes, most = _cinder(connection)
    return Limits(
        quotas=(*_nova(connection), *sizes, *_neutron(connection)),
        volume_unit_bytes=marks.GIB,
        volume_max_bytes=most,
        snapshots_take_space=True,  # unless Cinder's no_snapshot_gb_quota is set, which its API does not tell
        volumes_made=tuple(
            sorted(volume.name for volume in volumes if marks.MIGRATION in (volume.metadata or {}) and volume.name)
        ),
        snapshots_made=_snapshots(connection),
    )


def _nova(connection: Connection) -> list[Quota]:
    with connection.using("asking for Nova's limits") as conn:
        told = conn.compute.get_limits().absolute
    rows: tuple[tuple[Resource, int | None, int | None, int], ...] = (
        ("VMs", told.instances, told.instances_used, 1),
        ("vCPUs", told.total_cores, told.total_cores_used, 1),
        ("memory", told.total_ram, told.total_ram_used, 1 << 20),
    )
    return [
        Quota(resource=resource, limit=limit * unit, used=(used or 0) * unit)
        for resource, limit, used, unit in rows
        if limit is not None and limit >= 0
    ]


def volume_quotas(connection: Connection) -> list[Quota]:
    """Cinder's alone."""
    return _cinder(connection)[0]


def _cinder(connection: Connection) -> tuple[list[Quota], int | None]:
    """Quotas, and the largest volume allowed."""
    told = _asked(connection, "block_storage", "/os-quota-sets/{project}", "quota_set", usage="true")
    found = []
    for name, entry in sorted(told.items()):
        if not isinstance(entry, dict) or entry.get("limit", -1) < 0:
            continue
        base, _, pool = name.partition("_")
        if base in CINDER:
            resource, unit = CINDER[base]
            used = entry.get("in_use", 0) + entry.get("reserved", 0)
            found.append(Quota(resource=resource, limit=entry["limit"] * unit, used=used * unit, pool=pool or None))
    each = told.get("per_volume_gigabytes") or {}
    most = each.get("limit", -1) if isinstance(each, dict) else -1
    return found, most * marks.GIB if most >= 0 else None


def _neutron(connection: Connection) -> list[Quota]:
    told = _asked(connection, "network", "/quotas/{project}/details.json", "quota").get("port") or {}
    if told.get("limit", -1) < 0:
        return []
    return [Quota(resource="ports", limit=told["limit"], used=told.get("used", 0) + told.get("reserved", 0))]


def _asked(connection: Connection, service: str, path: str, key: str, **query: str) -> dict[str, Any]:
    """One object of a service's answer; nothing where these credentials may not ask, or the service has no quotas."""
    try:
        with connection.using("asking for the project's quotas") as conn:
            answer = getattr(conn, service).get(path.format(project=conn.current_project_id), params=query)
            sdk.raise_from_response(answer)
            return dict(answer.json().get(key) or {})
    except (PermissionDenied, NotFound):
        return {}


def _snapshots(connection: Connection) -> dict[str, int]:
    """Volume id -> snapshots of it that migrations have made."""
    counted: dict[str, int] = {}
    with connection.using("listing the project's snapshots") as conn:
        for snapshot in conn.block_storage.snapshots():
            if marks.MIGRATION in (snapshot.metadata or {}):
                counted[snapshot.volume_id] = counted.get(snapshot.volume_id, 0) + 1
    return counted
