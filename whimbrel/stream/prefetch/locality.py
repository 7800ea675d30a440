"""What lies near what the guest touched: file systems keep together what belongs together.

The disk is seen in aligned regions of several sizes. A region's promise is the share of it that the guest has touched;
of equal ones the latest goes first. So a single touch brings its closest neighbours, and a region where one touch
follows the other is fetched whole, before the cold sweep goes where nobody has been.
"""

from __future__ import annotations

import heapq
from typing import Final

from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.predictor import Proposal, Wanted

LEVELS: Final = (4, 16, 64, 256)
"""Chunks of a region: 256 KiB to 16 MiB."""
PATIENCE: Final = 512
STEPS: Final = 512
"""Chunks looked at in one call."""


class _Region:
    __slots__ = ("at", "first", "last", "left", "size", "touches")

    def __init__(self, first: int, size: int) -> None:
        self.first, self.last, self.size = first, first + size, size
        self.at = first
        self.left = size
        """Chunks not looked at yet, from ``at`` on, around the end."""
        self.touches = 0


class Locality:
    """Proposes the rest of regions that the guest is in."""

    name = "locality"

    def __init__(self) -> None:
        self._regions: dict[tuple[int, int], _Region] = {}
        self._heap: list[tuple[float, int, int, int]] = []
        self._clock = 0
        self._seen: set[int] = set()

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor."""
        if access == "trim":
            return
        for chunk in range(first, last):
            if chunk not in self._seen:
                self._seen.add(chunk)
                self._touch(chunk)

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor."""
        steps = STEPS
        while self._heap and steps:
            promise, _, size, number = self._heap[0]
            region = self._regions[size, number]
            if not region.left or promise > -region.touches / size:
                heapq.heappop(self._heap)
                continue
            while region.left and steps:
                steps -= 1
                chunk = region.at
                region.left -= 1
                region.at = region.first if chunk + 1 == region.last else chunk + 1
                if wanted(chunk):
                    return Proposal((chunk, self._upto(region, chunk, longest, wanted)), PATIENCE)
        return None

    def _upto(self, region: _Region, chunk: int, longest: int, wanted: Wanted) -> int:
        last = chunk + 1
        while region.at == last and region.left and last - chunk < longest and wanted(last):
            last += 1
            region.left -= 1
            region.at = region.first if last == region.last else last
        return last

    def _touch(self, chunk: int) -> None:
        self._clock += 1
        for size in LEVELS:
            number = chunk // size
            region = self._regions.get((size, number))
            if region is None:
                region = self._regions[size, number] = _Region(number * size, size)
                region.at = chunk
            region.touches += 1
            if region.left:
                heapq.heappush(self._heap, (-region.touches / size, -self._clock, size, number))
