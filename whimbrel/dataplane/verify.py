"""Proof that the target holds what it should: a round against its digests, and the target against the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import xxhash

from whimbrel.dataplane.digests import REGION_BYTES, UNIT_BYTES, UNKNOWN, DiskDigest
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.dataplane.hashscan import differing_units
from whimbrel.dataplane.lastdelta import LastDelta
from whimbrel.dataplane.manifest import Manifest
from whimbrel.dataplane.plan import grain_bytes, in_order, widen
from whimbrel.dataplane.sampling import Sampler
from whimbrel.dataplane.scan import Scan, ScanProgress, Span, allocation, cut
from whimbrel.errors import DataMismatch, PreconditionFailed
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockDevice

MAX_OFFSETS = 16
_ASK_ALLOCATION_BYTES = 4 << 20
"""Shorter runs are read without asking the target for holes first."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a round's verification looked at: bytes compared, and how many of them the target reported as holes."""

    verified_bytes: int
    hole_bytes: int
    digest_hex: str


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Source against target. ``mismatches`` are offsets of differing units of 64 KiB, the first 16 of them.

    In mode ``full``, ``digest_hex`` is the source's whole-disk digest, equal to ``Manifest.digest`` of an equal target.
    In mode ``sampled`` it covers the sample: offset (8 bytes little endian) and digest of each unit.
    ``read_back_bytes`` were brought by a delta that came after the target was frozen (``LastDelta``).
    """

    compared_bytes: int
    skipped_zero_bytes: int
    read_back_bytes: int
    mismatches: tuple[int, ...]
    mismatch_count: int
    digest_hex: str
    mode: Literal["full", "sampled"]
    sample: str

    @property
    def equal(self) -> bool:
        """Whether nothing differed."""
        return self.mismatch_count == 0


def verify_round(
    target: BlockDevice,
    manifest: Manifest,
    ranges: Iterable[Extent] | None = None,
    *,
    epoch: str | None = None,
    lanes: int = 2,
    governor: Governor | None = None,
    priority: Priority = Priority.DELTA,
    on_progress: Callable[[ScanProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> VerifyResult:
    """Read back from the target what the manifest's epoch wrote (or ordered ``ranges``) and compare the digests.

    Raises DataMismatch naming the first offsets, PreconditionFailed (the epoch is another or not complete, or a
    digest is not known), ScanStopped, and what the device raises.
    """
    if epoch is not None and manifest.epoch != epoch:
        raise PreconditionFailed(f"the manifest is at round {manifest.epoch!r}, not at {epoch!r}")
    if ranges is None and not manifest.complete:
        raise PreconditionFailed(f"round {manifest.epoch!r} is not complete: there is nothing to verify yet")
    scan = Scan(
        [target],
        cut(_written(target, manifest, ranges)),
        lanes=lanes,
        share=governor.share(priority) if governor else None,
        should_stop=should_stop,
        on_progress=on_progress,
        total_bytes=manifest.size_bytes,
    )
    found = _Mismatches()
    verified = holes = 0
    state = xxhash.xxh3_128()
    for span, (digests,) in scan:
        known = manifest.read(span.first_unit, span.units)
        verified += span.length
        holes += span.length * span.zero[0]
        state.update(span.offset.to_bytes(8, "little") + digests)
        if known != digests:
            unknown = [unit for unit in differing_units(digests, known) if known[unit * 16 : unit * 16 + 16] == UNKNOWN]
            if unknown:
                raise PreconditionFailed(
                    f"no digest is known at offset {span.offset + unknown[0] * UNIT_BYTES}: its copy did not finish"
                )
            found.add(span, digests, known)
    if found.count:
        raise DataMismatch(
            f"{found.count} units of 64 KiB of the target differ from what was written, first at {found.offsets[0]}",
            offsets=found.offsets,
            epoch=manifest.epoch,
        )
    return VerifyResult(verified, holes, state.hexdigest())


def compare(
    source: BlockDevice,
    target: BlockDevice,
    *,
    since: LastDelta | None = None,
    mode: Literal["full", "sampled"] = "full",
    sample_fraction: float = 0.05,
    seed: int = 0,
    lanes: int = 2,
    governor: Governor | None = None,
    priority: Priority = Priority.DELTA,
    on_progress: Callable[[ScanProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CompareResult:
    """Compare the source's length of both devices, wherever either has data; both must be at rest.

    ``since`` is what the target got after the state that ``target`` reads. Ranges that both report as zeros are equal
    without reading. Mode ``sampled`` looks at a random part of the rest. Differences are returned, not raised.
    Raises PreconditionFailed (the target is smaller), ScanStopped, and what the devices raise.
    """
    size_bytes = source.size_bytes
    if target.size_bytes < size_bytes:
        raise PreconditionFailed(f"the target has {target.size_bytes} bytes, the source {size_bytes}")
    grain = grain_bytes(source, target)
    spans: Iterator[Span] = allocation([source, target], size_bytes)
    sample = "all data of both sides"
    if mode == "sampled":
        sampler = Sampler(sample_fraction, seed)
        spans = (piece for span in spans for piece in ([span] if all(span.zero) else sampler.pieces(span, grain)))
        sample = f"a random {sample_fraction:.2%} of the data, in pieces of {grain >> 10} KiB, seed {seed}"
    scan = Scan(
        [source, target],
        cut(spans),
        lanes=lanes,
        share=governor.share(priority) if governor else None,
        should_stop=should_stop,
        on_progress=on_progress,
        total_bytes=size_bytes,
    )
    found = _Mismatches()
    compared = skipped = read_back = 0
    whole, part = DiskDigest(size_bytes), xxhash.xxh3_128()
    for span, (ours, theirs) in scan:
        if all(span.zero):
            skipped += span.length
            if mode == "full":
                whole.add_zeros(span.units)
            continue
        held, brought = theirs, 0
        if since is not None:
            held, brought = since.settle(span, ours, theirs)
        compared += span.length - brought
        read_back += brought
        if mode == "full":
            whole.add(ours)
        else:
            part.update(span.offset.to_bytes(8, "little") + ours)
        if ours != held:
            found.add(span, ours, held)
    return CompareResult(
        compared_bytes=compared,
        skipped_zero_bytes=skipped,
        read_back_bytes=read_back,
        mismatches=tuple(found.offsets),
        mismatch_count=found.count,
        digest_hex=whole.hexdigest() if mode == "full" else part.hexdigest(),
        mode=mode,
        sample=sample,
    )


class _Mismatches:
    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.count = 0

    def add(self, span: Span, one: bytes, other: bytes) -> None:
        units = differing_units(one, other)
        self.count += len(units)
        room = MAX_OFFSETS - len(self.offsets)
        self.offsets.extend(span.offset + unit * UNIT_BYTES for unit in units[:room])


def _written(target: BlockDevice, manifest: Manifest, ranges: Iterable[Extent] | None) -> Iterator[Span]:
    """What is to be read back, in pieces of at most a region, with the target's holes marked in the longer ones."""
    size_bytes = manifest.size_bytes
    grain = grain_bytes(target)
    if ranges is None:
        runs = (Extent(first * UNIT_BYTES, units * UNIT_BYTES) for first, units in manifest.written())
        clipped = (Extent(run.start, min(run.length, size_bytes - run.start)) for run in runs)
    else:
        clipped = (Extent(piece.start, piece.length) for piece in in_order(ranges, size_bytes))
    for run in widen(clipped, grain, size_bytes):
        at = run.start
        while at < run.end:
            stop = min(at - at % REGION_BYTES + REGION_BYTES, run.end)
            if stop - at < _ASK_ALLOCATION_BYTES:
                yield Span(at, stop - at, (False,))
            else:
                answer = widen(in_order(target.extents(at, stop - at), target.size_bytes), grain, size_bytes)
                for piece in answer:
                    yield Span(piece.start, piece.length, (piece.zero,))
            at = stop
