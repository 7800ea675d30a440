"""Storage that is full, as Ceph says it is: a pool by its quota, or the whole cluster by its ratios."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labs.kvm.errors import LabError
from labs.openstack import ceph
from labs.openstack.layout import OpenStackLayout

if TYPE_CHECKING:
    from labs.openstack.lab import OpenStackLab

RATIOS = {"full": "0.95", "backfillfull": "0.90", "nearfull": "0.85"}
"""Ceph's own, in the order in which they may be raised."""
NEXT_TO_NOTHING = {"nearfull": "0.00001", "backfillfull": "0.00002", "full": "0.00003"}
ROOM_KNOWN_WITHIN_S = 180.0
TOLD_WITHIN_S = 60.0
"""The monitor looks at usage every few seconds."""


@contextmanager
def full_pool(layout: OpenStackLayout, pool: str) -> Iterator[None]:
    """Inside, the pool has a quota far below what lies in it. Clients are refused with EDQUOT, or wait."""
    quota = ("osd", "pool", "set-quota", pool, "max_bytes")
    ceph.command(layout, *quota, "1")
    try:
        _wait(layout, pool, "full_quota", there=True)
        yield
    finally:
        ceph.command(layout, *quota, "0")
        _wait(layout, pool, "full", there=False)


@contextmanager
def limited_pool(layout: OpenStackLayout, pool: str, more_bytes: int) -> Iterator[None]:
    """Inside, the pool takes about this much more than lies in it now; it may take a few seconds of writes besides."""
    stats = json.loads(ceph.command(layout, "df", "-f", "json"))["pools"]
    stored = next(int(one["stats"]["stored"]) for one in stats if one["name"] == pool)
    quota = ("osd", "pool", "set-quota", pool, "max_bytes")
    ceph.command(layout, *quota, str(stored + more_bytes))
    try:
        yield
    finally:
        ceph.command(layout, *quota, "0")
        _wait(layout, pool, "full", there=False)


@contextmanager
def full_cluster(layout: OpenStackLayout, pool: str) -> Iterator[None]:
    """Inside, every pool is full, this one among them; guests wait with their writes. Clients: ENOSPC, or they wait."""
    for name, ratio in NEXT_TO_NOTHING.items():
        ceph.command(layout, "osd", f"set-{name}-ratio", ratio)
    try:
        _wait(layout, pool, "full", there=True)
        yield
    finally:
        for name, ratio in RATIOS.items():
            ceph.command(layout, "osd", f"set-{name}-ratio", ratio)
        _wait(layout, pool, "full", there=False)


def until_room_is_known(lab: OpenStackLab) -> None:
    """Until every cloud's Cinder believes that its pools have room; its scheduler is told once a minute.

    Before that it refuses volumes for want of a backend. Raises LabError.
    """
    for name in lab.names:
        connection = lab.cloud(name).connect()
        deadline = time.monotonic() + ROOM_KNOWN_WITHIN_S
        while full := [pool.name for pool in connection.block_storage.backend_pools() if _free_gib(pool) <= 1]:
            if time.monotonic() > deadline:
                raise LabError(f"Cinder of cloud {name} still takes {', '.join(full)} to be full")
            time.sleep(1.0)
        connection.close()


def _free_gib(pool: Any) -> float:
    return float(pool.capabilities["free_capacity_gb"])


def _wait(layout: OpenStackLayout, pool: str, flag: str, *, there: bool) -> None:
    """Until the pool has the flag, or has it no more. Raises LabError."""
    deadline = time.monotonic() + TOLD_WITHIN_S
    while (flag in _flags(layout, pool)) is not there:
        if time.monotonic() > deadline:
            raise LabError(f"pool {pool} {'is not' if there else 'is still'} {flag} after {TOLD_WITHIN_S:.0f} s")
        time.sleep(0.3)


def _flags(layout: OpenStackLayout, pool: str) -> set[str]:
    told = json.loads(ceph.command(layout, "osd", "dump", "-f", "json"))
    found = next(one for one in told["pools"] if one["pool_name"] == pool)
    return set(found["flags_names"].split(","))
