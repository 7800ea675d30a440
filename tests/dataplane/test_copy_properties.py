"""Any content, any writes between rounds, any fault, any kill: retries end with equal bytes and true digests."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.disks import UNIT, VolatileDisk, assert_equal_and_known, assert_truthful, kill, reader, writer
from whimbrel.dataplane import CopySettings, Manifest, MemoryDisk, changed_by_hash, compare, copier, copy, verify_round
from whimbrel.errors import Unavailable
from whimbrel.model.extent import Extent
from whimbrel.ports.block import Operation

KILLS = {"kill", "power", "flush"}
"""The process dies; with ``power`` at any write and ``flush`` at a flush, both hosts lose what was not synced."""
KILLED = (Unavailable, ValueError, OSError)
"""What calls on a file that the killer closed may end with."""
FAST = CopySettings(lanes=2, request_bytes=UNIT, in_flight_bytes=8 * UNIT)


@pytest.fixture(scope="module", autouse=True)
def _frequent_checkpoints() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copier, "INTERVAL_S", 0.0001)
        patch.setattr(copier, "INTERVAL_BYTES", UNIT)
        yield


class SyncedFile:
    """Remembers a manifest as its last fdatasync left it, to lose later pages as a crash of the host may."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._synced = b""
        real = os.fdatasync

        def sync(fd: int) -> None:
            real(fd)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                self._synced = path.read_bytes()

        patch.setattr(os, "fdatasync", sync)

    def crash(self, rng: random.Random) -> None:
        now = self._path.read_bytes()
        pages = range(0, len(now), 4096)
        mixed = b"".join((now if rng.random() < 0.5 else self._synced or now)[at : at + 4096] for at in pages)
        self._path.write_bytes(mixed)


write = st.tuples(st.integers(0, 60), st.integers(0, UNIT - 1), st.integers(1, 20 * UNIT), st.booleans())
fault = st.tuples(
    st.sampled_from(["source", "target", "kill", "power", "flush"]), st.integers(1, 60), st.integers(0, 2**32 - 1)
)
rounds = st.lists(st.tuples(st.lists(write, max_size=6), st.lists(fault, max_size=3)), min_size=1, max_size=4)


Plan = list[tuple[list[tuple[int, int, int, bool]], list[tuple[str, int, int]]]]


def apply(disk: MemoryDisk, writes: list[tuple[int, int, int, bool]], rng: random.Random) -> None:
    for unit, at, wanted, zero in writes:
        start = min(unit * UNIT + at, disk.size_bytes - 1)
        length = min(wanted, disk.size_bytes - start)
        if zero:
            disk.discard(start, length)
        else:
            disk.write(start, rng.randbytes(length))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    units=st.integers(1, 60),
    tail=st.sampled_from([0, 1, 512, 65535]),
    plan=rounds,
    block=st.sampled_from([1, 512, 4096, 2 * UNIT]),
    fresh=st.booleans(),
    by_hash=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_history_ends_with_equal_bytes(
    units: int, tail: int, plan: Plan, block: int, fresh: bool, by_hash: bool, seed: int
) -> None:
    rng = random.Random(seed)
    size = units * UNIT + tail
    live = MemoryDisk(size)
    target = VolatileDisk(-(-size // block) * block, block_bytes=block)
    if not fresh:
        target.write(0, rng.randbytes(size))
        target.account("flush")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "manifest"
        synced = SyncedFile(path, patch)
        manifest = Manifest.open(path, size)
        for number, (writes, faults) in enumerate(plan):
            apply(live, writes, rng)
            point = live.snapshot()
            live.take_changed()
            for kind, nth, crash_seed in [*faults, ("none", 0, 0)]:
                extents = baseline_or_delta(point, manifest, number, by_hash)
                arm(kind, nth, point, target, manifest)
                with suppress(*(KILLED if kind in KILLS else (Unavailable,))):
                    copy(
                        reader(point),
                        writer(target),
                        extents=extents,
                        manifest=manifest,
                        epoch=f"round-{number}",
                        settings=FAST,
                        target_is_zero=fresh,
                    )
                point.heal()
                target.heal()
                target.hook = None
                if kind in KILLS:
                    if manifest._fd >= 0:
                        kill(manifest)
                    if kind != "kill":
                        target.crash(random.Random(crash_seed))
                        synced.crash(random.Random(crash_seed + 1))
                    manifest = Manifest.open(path, size)
                assert_truthful(manifest, target)
            assert manifest.complete
            assert_equal_and_known(point, target, manifest)
            verify_round(writer(target), manifest, epoch=f"round-{number}")
            result = compare(reader(point), reader(target))
            assert result.equal
            assert result.digest_hex == manifest.digest()
        manifest.close()


def baseline_or_delta(point: MemoryDisk, manifest: Manifest, number: int, by_hash: bool) -> list[Extent]:
    if number == 0:
        return list(reader(point).extents())
    if by_hash:
        return list(changed_by_hash(reader(point), manifest))
    return list(reader(point).changed())


def arm(kind: str, nth: int, source: MemoryDisk, target: VolatileDisk, manifest: Manifest) -> None:
    if kind == "source":
        source.fail_at(nth, Unavailable("injected"))
    elif kind == "target":
        target.fail_at(nth, Unavailable("injected"))
    elif kind in KILLS:
        flushes: frozenset[Operation] = frozenset(("flush",))
        target.hook_on = flushes if kind == "flush" else flushes | {"write", "zero"}
        target.hook_at = target.seen + (-(-nth // 10) if kind == "flush" else nth)
        target.hook = lambda: kill(manifest)


@settings(max_examples=40, deadline=None)
@given(
    units=st.integers(1, 30),
    writes=st.lists(write, max_size=8),
    later=st.lists(write, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_hash_scan_finds_exactly_the_units_that_differ(
    units: int, writes: list[tuple[int, int, int, bool]], later: list[tuple[int, int, int, bool]], seed: int
) -> None:
    rng = random.Random(seed)
    size = units * UNIT - 100
    disk, target = MemoryDisk(size), VolatileDisk(size)
    apply(disk, writes, rng)
    with tempfile.TemporaryDirectory() as directory, Manifest.open(Path(directory) / "m", size) as manifest:
        copy(reader(disk), writer(target), extents=reader(disk).extents(), manifest=manifest, epoch="a")
        before = disk.read(0, size)
        apply(disk, later, rng)
        after = disk.read(0, size)
        found = list(changed_by_hash(reader(disk), manifest))
        expected = {at for at in range(0, size, UNIT) if before[at : at + UNIT] != after[at : at + UNIT]}
        assert {at for extent in found for at in range(extent.start, extent.end, UNIT)} == expected
        for extent in found:
            assert not extent.zero or not any(after[extent.start : extent.end])
