"""Finds changes by content, for disks without tracking or with tracking that is lost; and finds tracking that lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from whimbrel.dataplane.digests import DIGEST_BYTES, UNIT_BYTES, UNKNOWN
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.dataplane.manifest import Manifest
from whimbrel.dataplane.plan import in_order, widen
from whimbrel.dataplane.sampling import Sampler
from whimbrel.dataplane.scan import Scan, ScanProgress, Span, allocation, cut
from whimbrel.errors import PreconditionFailed
from whimbrel.model.extent import Extent, merge
from whimbrel.ports.block import BlockDevice


def changed_by_hash(
    source: BlockDevice,
    manifest: Manifest,
    *,
    extents: Iterable[Extent] | None = None,
    lanes: int = 2,
    governor: Governor | None = None,
    priority: Priority = Priority.DELTA,
    on_progress: Callable[[ScanProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Extent]:
    """Extents whose content differs from what the manifest knows of the target, in order; unknown counts as different.

    ``extents`` (ordered, with known zeros marked) narrows the search; by default the source's allocation is used.
    Holes are compared without reading them. Consume it fully before ``copy`` is called with the result: ``copy``
    changes the manifest. Raises PreconditionFailed (another size), ScanStopped, and what the device raises.
    """
    _check_size(source, manifest)
    size_bytes = source.size_bytes
    if extents is None:
        spans = allocation([source], size_bytes)
    else:
        pieces = widen(in_order(extents, size_bytes), UNIT_BYTES, size_bytes)
        spans = (Span(piece.start, piece.length, (piece.zero,)) for piece in pieces)
    scan = Scan(
        [source],
        cut(spans),
        lanes=lanes,
        share=governor.share(priority) if governor else None,
        should_stop=should_stop,
        on_progress=on_progress,
        total_bytes=size_bytes,
    )
    return merge(_differing(scan, manifest))


def _differing(scan: Scan, manifest: Manifest) -> Iterator[Extent]:
    for span, (digests,) in scan:
        known = manifest.read(span.first_unit, span.units)
        if known == digests:
            continue
        if known == UNKNOWN * span.units:
            yield Extent(span.offset, span.length, span.zero[0])
            continue
        end = span.offset + span.length
        for unit in differing_units(digests, known):
            start = span.offset + unit * UNIT_BYTES
            yield Extent(start, min(UNIT_BYTES, end - start), span.zero[0])


def differing_units(one: bytes, other: bytes) -> list[int]:
    """Indices of the units whose digests differ between two runs of the same length."""
    return [
        at // DIGEST_BYTES
        for at in range(0, len(one), DIGEST_BYTES)
        if one[at : at + DIGEST_BYTES] != other[at : at + DIGEST_BYTES]
    ]


def sample_unchanged(
    source: BlockDevice,
    manifest: Manifest,
    changed: Iterable[Extent],
    *,
    fraction: float,
    seed: int,
    lanes: int = 2,
    governor: Governor | None = None,
    priority: Priority = Priority.DELTA,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Offsets of units that the tracking calls unchanged and that differ from the manifest: proof that it lies.

    Looks at a random ``fraction`` of the units outside ``changed`` (ordered) whose digest is known, at the same point
    in time that ``changed`` speaks of. Raises PreconditionFailed, ScanStopped, and what the device raises.
    """
    _check_size(source, manifest)
    sampler = Sampler(fraction, seed)
    quiet = _outside(allocation([source], source.size_bytes), changed, source.size_bytes)
    chosen = (
        piece
        for span in quiet
        for piece in sampler.pieces(span, UNIT_BYTES)
        if manifest.get(piece.first_unit) is not None
    )
    scan = Scan(
        [source], chosen, lanes=lanes, share=governor.share(priority) if governor else None, should_stop=should_stop
    )
    return [span.offset for span, (digest,) in scan if digest != manifest.get(span.first_unit)]


def _outside(spans: Iterable[Span], changed: Iterable[Extent], size_bytes: int) -> Iterator[Span]:
    """What of ``spans`` no unit of ``changed`` touches; both in order."""
    moving = widen(in_order(changed, size_bytes), UNIT_BYTES, size_bytes)
    head = next(moving, None)
    for span in spans:
        at, end = span.offset, span.offset + span.length
        while at < end:
            while head is not None and head.end <= at:
                head = next(moving, None)
            stop = end if head is None else min(end, max(head.start, at))
            if stop > at:
                yield Span(at, stop - at, span.zero)
            at = end if head is None else max(stop, min(end, head.end))


def _check_size(source: BlockDevice, manifest: Manifest) -> None:
    if source.size_bytes != manifest.size_bytes:
        raise PreconditionFailed(
            f"the source has {source.size_bytes} bytes, its manifest is for {manifest.size_bytes}: it was resized",
            action="set the disk back to its size, or discard the manifest and copy the disk again",
        )
