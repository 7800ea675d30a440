"""The data path tried with real bytes: a point of the source is read, a small target volume is written and removed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from activities.patience import until_ready
from whimbrel.dataplane import open_device
from whimbrel.errors import WhimbrelError
from whimbrel.model.extent import total_bytes
from whimbrel.model.facts import PathFacts, SourceFacts
from whimbrel.model.plan import VmPlan
from whimbrel.model.point import OpenPoint
from whimbrel.model.vm import Power, VmSpec, VolumeSpec
from whimbrel.ports.block import BlockDevice
from whimbrel.ports.cloud import Cloud

PROBE_BYTES = 32 << 20
PROBE_VOLUME_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
DIRTY_WATCH_S = 3.0
ASKED_AGAIN_S = 240.0
"""How long a cloud that is not ready is asked again here: a probe that ends undoes what it waits for."""
ASK_EVERY_S = 1.0
T = TypeVar("T")


def _done(call: Callable[[], T]) -> T:
    """What the call gives once the cloud has done it. Raises NotReady after ``ASKED_AGAIN_S``."""
    return until_ready(call, ASKED_AGAIN_S, ASK_EVERY_S)


def read_rate(device: BlockDevice, limit_bytes: int = PROBE_BYTES) -> tuple[float | None, float]:
    """(bytes/s over the first data of a device, seconds of one small read); the rate is None if all is hole."""
    lane = device.lane()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        began = time.monotonic()
        lane.submit_read(0, buffer[: min(4096, device.size_bytes)])
        lane.reap()
        latency_s = time.monotonic() - began
        done, began = 0, time.monotonic()
        for extent in device.extents():
            if extent.zero:
                continue
            at = extent.start
            while at < extent.end and done < limit_bytes:
                length = min(CHUNK_BYTES, extent.end - at)
                lane.submit_read(at, buffer[:length])
                lane.reap()
                done += length
                at += length
            if done >= limit_bytes:
                break
        elapsed_s = time.monotonic() - began
        return (done / elapsed_s if done and elapsed_s > 0 else None), latency_s
    finally:
        lane.close()


def write_rate(device: BlockDevice, limit_bytes: int = PROBE_BYTES, *, pattern: bytes = b"") -> float:
    """Bytes per second of writes that end with a flush; ``pattern`` (1 MiB) is what is written."""
    lane = device.lane()
    data = memoryview(pattern or os.urandom(CHUNK_BYTES))
    try:
        began = time.monotonic()
        done = 0
        while done < min(limit_bytes, device.size_bytes):
            length = min(CHUNK_BYTES, device.size_bytes - done)
            lane.submit_write(done, data[:length])
            lane.reap()
            done += length
        lane.flush()
        return done / max(time.monotonic() - began, 1e-6)
    finally:
        lane.close()


def _read_point(point: OpenPoint) -> tuple[float | None, float]:
    rates: list[float] = []
    latencies: list[float] = []
    for disk in point.disks:
        device = open_device(disk.endpoint)
        try:
            rate, latency_s = read_rate(device)
        finally:
            device.close()
        latencies.append(latency_s)
        if rate is not None:
            rates.append(rate)
    return (min(rates) if rates else None), max(latencies)


def _changed_bytes(point: OpenPoint) -> int:
    changed = 0
    for disk in point.disks:
        if disk.tracked:
            device = open_device(disk.endpoint)
            try:
                changed += total_bytes(device.changed())
            finally:
                device.close()
    return changed


def probe_source(cloud: Cloud, vm: VmSpec, migration: str) -> tuple[float | None, float, float | None]:
    """(read bytes/s, latency s, dirty bytes/s) from real points in time, which are removed again."""
    disks = tuple(disk.key for disk in vm.disks)
    trackable = vm.power is Power.RUNNING and any(disk.trackable for disk in vm.disks)
    first, second = f"whimbrel-{migration}-p000", f"whimbrel-{migration}-p001"
    dirty: float | None = None
    try:
        point = _done(lambda: cloud.points.open(vm.ref, disks, key=first, migration=migration, track=trackable))
        rate, latency_s = _read_point(point)
        _done(lambda: cloud.points.close(vm.ref, first, migration=migration))
        if trackable and point.token is not None:
            rest_s = DIRTY_WATCH_S - (time.time() - point.taken_at.timestamp())
            time.sleep(max(rest_s, 0.0))
            token = point.token
            later = _done(lambda: cloud.points.open(vm.ref, disks, key=second, since=token, migration=migration))
            span_s = (later.taken_at - point.taken_at).total_seconds()
            dirty = _changed_bytes(later) / span_s if span_s > 0 else None
        return rate, latency_s, dirty
    finally:
        for key in (first, second):
            _done(lambda key=key: cloud.points.close(vm.ref, key, migration=migration))  # type: ignore[misc]
        _done(lambda: cloud.points.forget(vm.ref, migration=migration))


def probe_target(cloud: Cloud, pool: str, migration: str, *, look: bool = False) -> tuple[float, bool | None]:
    """(write bytes/s to a small volume in ``pool``, which is removed again; whether its path shows what was written).

    The second only with ``look``: None otherwise.
    """
    pattern = os.urandom(CHUNK_BYTES)
    seen: bool | None = None
    spec = VolumeSpec(
        name=f"whimbrel-probe-{migration}", pool=pool, size_bytes=PROBE_VOLUME_BYTES, format="raw", migration=migration
    )
    key = f"whimbrel-{migration}-probe"
    try:
        volume = _done(lambda: cloud.volumes.ensure_volume(spec))
        session = _done(lambda: cloud.volumes.open_writer(key, {"probe": volume}, migration=migration))
        device = open_device(session.disk("probe").endpoint)
        try:
            rate = write_rate(device, pattern=pattern)
        finally:
            device.close()
        if look:
            _done(lambda: cloud.volumes.close_writer(key))
            seen = _shows(cloud.serving.local_path(volume), pattern)
        return rate, seen
    finally:
        _done(lambda: cloud.volumes.close_writer(key))
        _done(lambda: cloud.volumes.ensure_absent(spec.name, pool, migration=migration))


def probe_ports(cloud: Cloud, vm: VmSpec, migration: str, *, patient: bool) -> dict[str, str]:
    """NIC key -> why the target refuses its port; each port is made as the migration will make it, and removed.

    Whether MAC and address may be chosen, are free and fit the network is the target's to say: a project does not see
    other projects' ports. With ``patient`` what may pass by itself is raised.
    """
    refused: dict[str, str] = {}
    made: list[str] = []
    try:
        for nic in vm.nics:
            address = nic.addresses[0] if nic.addresses else None
            try:
                made.append(cloud.networks.ensure_port(nic.network, nic.mac, address, migration=migration))
            except WhimbrelError as error:
                if patient and error.retryable:
                    raise
                refused[nic.key] = error.message
    finally:
        for port in made:
            cloud.networks.ensure_port_absent(port, migration=migration)
    return refused


def _shows(path: str, pattern: bytes) -> bool:
    """Whether this mover reads and may write what lies under ``path``."""
    try:
        with Path(path).open("r+b") as file:
            return file.read(len(pattern)) == pattern
    except OSError:
        return False


def probe_path(
    plan: VmPlan,
    source: Cloud,
    target: Cloud,
    *,
    facts: SourceFacts,
    migration: str,
    state_dir: Path,
    patient: bool,
    look: bool = False,
) -> PathFacts:
    """Try the way the bytes will take; what fails is told in ``why_not`` instead of raised.

    With ``look`` the mover also tries to open a volume of the target under its path, as a streaming server will.

    With ``patient``, what may pass by itself (Unavailable and the like) is raised, so that it is tried again.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    found = PathFacts(probed=True, state_free_bytes=shutil.disk_usage(state_dir).free)
    vm = facts.vm
    if vm is None or not vm.disks:
        return found.model_copy(update={"why_not": "the VM or its disks were not found"})
    why: list[str] = []
    try:
        rate, latency_s, dirty = probe_source(source, vm, migration)
        found = found.model_copy(
            update={
                "reads_source": True,
                "read_bytes_per_s": rate,
                "latency_s": latency_s,
                "dirty_bytes_per_s": dirty,
            }
        )
    except WhimbrelError as error:
        if patient and error.retryable:
            raise
        why.append(f"reading the source: {error}")
    pool = plan.pool_for(vm.disks[0].pool)
    if pool is None:
        why.append("writing the target: the plan maps no pool for the first disk")
    else:
        try:
            rate, seen = probe_target(target, pool, migration, look=look)
            found = found.model_copy(
                update={"writes_target": True, "write_bytes_per_s": rate, "target_file_seen": seen}
            )
        except WhimbrelError as error:
            if patient and error.retryable:
                raise
            why.append(f"writing the target: {error}")
    return found.model_copy(update={"why_not": "; ".join(why)})
