"""The last delta in a comparison with a target that was frozen before it.

To freeze a target takes its cloud a second or more, so it is done before the guest is stopped. What the last delta then
brought is not in the frozen state; but it was read back from the target before the VM started, and the manifest has the
digests of what was read. These are held against the source in place of the frozen bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from whimbrel.dataplane.digests import DIGEST_BYTES, UNIT_BYTES, UNKNOWN
from whimbrel.dataplane.manifest import Manifest
from whimbrel.dataplane.scan import Span
from whimbrel.model.extent import Extent, align


class LastDelta:
    """Units that the last delta wrote, with their digests; ``changed`` are the extents it was made of, in order."""

    def __init__(self, changed: Iterable[Extent], manifest: Manifest) -> None:
        self._manifest = manifest
        runs = list(align(changed, UNIT_BYTES, manifest.size_bytes))
        self._firsts = [run.start // UNIT_BYTES for run in runs]
        self._ends = [-(-run.end // UNIT_BYTES) for run in runs]

    def settle(self, span: Span, ours: bytes, theirs: bytes) -> tuple[bytes, int]:
        """Digests to hold against ``ours``, and how many of the span's bytes come from the delta.

        Where the manifest knows no digest (another mover wrote it) there is only the proof of that round itself.
        """
        settled, brought = bytearray(theirs), 0
        first, end = span.first_unit, span.first_unit + span.units
        number = bisect_left(self._ends, first + 1)
        while number < len(self._firsts) and self._firsts[number] < end:
            start, stop = max(self._firsts[number], first), min(self._ends[number], end)
            known = self._manifest.read(start, stop - start)
            for unit in range(start, stop):
                at, place = (unit - start) * DIGEST_BYTES, (unit - first) * DIGEST_BYTES
                digest = known[at : at + DIGEST_BYTES]
                settled[place : place + DIGEST_BYTES] = (
                    ours[place : place + DIGEST_BYTES] if digest == UNKNOWN else digest
                )
                brought += min(UNIT_BYTES, span.offset + span.length - unit * UNIT_BYTES)
            number += 1
        return bytes(settled), brought
