"""The order of earlier runs: chunks by their first use in recorded traces.

Two predictors read it: one a little ahead of where the guest is in that order (it may skip parts, or do them in
another sequence), which goes ahead of everything else; and one the whole of it from the front, when nothing is known
that is nearer to the guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.predictor import Proposal, Wanted
from whimbrel.stream.prefetch.trace import Trace

AHEAD: Final = 96
"""Entries of the order that count as near."""
PATIENCE: Final = 512
"""Touches beyond what the order says that a proposal is given."""
PATIENCE_AHEAD: Final = 128
"""The same near the guest: who is not there soon was not following the order."""


def first_uses(trace: Trace, chunk_bytes: int) -> list[int]:
    """Chunks in the order in which the guest first needed them from the source.

    A chunk whose first use is a write, zero or trim of the whole chunk needs no fetch and is left out.
    """
    seen: dict[int, bool] = {}
    for record in trace.records:
        end = min(record.offset + record.length, trace.header.size_bytes)
        for chunk in range(record.offset // chunk_bytes, -(-end // chunk_bytes)):
            if chunk in seen:
                continue
            start = chunk * chunk_bytes
            whole = record.offset <= start and end >= min(start + chunk_bytes, trace.header.size_bytes)
            if record.access == "read" or (record.access == "write" and not whole):
                seen[chunk] = True
            elif whole:
                seen[chunk] = False
    return [chunk for chunk, needed in seen.items() if needed]


def merged(orders: Iterable[list[int]]) -> list[int]:
    """One order of several: by the mean place in those that know a chunk."""
    places: dict[int, list[int]] = {}
    for order in orders:
        for place, chunk in enumerate(order):
            places.setdefault(chunk, []).append(place)
    return sorted(places, key=lambda chunk: (sum(places[chunk]) / len(places[chunk]), chunk))


class _Recorded:
    """A recorded order, and where in it the guest is."""

    patience = PATIENCE

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._place = {chunk: place for place, chunk in enumerate(order)}
        self._guest = 0

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor."""
        for chunk in range(first, last):
            place = self._place.get(chunk)
            if place is not None:
                self._guest = place
                self._arrived(place)

    def _arrived(self, place: int) -> None:
        """The guest is at this place."""

    def _run(self, place: int, longest: int, wanted: Wanted) -> Proposal:
        """The chunk at ``place``, with those that are both next to it on the disk and near it in the order."""
        first = self._order[place]
        last = first + 1
        while last - first < longest and self._soon(last, place) and wanted(last):
            last += 1
        return Proposal((first, last), max(place - self._guest, 0) * 2 + self.patience)

    def _soon(self, chunk: int, place: int) -> bool:
        found = self._place.get(chunk)
        return found is not None and abs(found - place) <= AHEAD


class HistoryAhead(_Recorded):
    """Proposes what comes next in the recorded order, from where the guest is."""

    name = "history-ahead"
    patience = PATIENCE_AHEAD

    def __init__(self, order: list[int]) -> None:
        super().__init__(order)
        self._next: Iterator[int] = iter(())

    def _arrived(self, place: int) -> None:
        self._next = iter(range(place + 1, min(place + 1 + AHEAD, len(self._order))))

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor."""
        for place in self._next:
            if wanted(self._order[place]):
                return self._run(place, longest, wanted)
        return None


class History(_Recorded):
    """Proposes the whole recorded order from its beginning."""

    name = "history"

    def __init__(self, order: list[int]) -> None:
        super().__init__(order)
        self._front = 0

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor."""
        while self._front < len(self._order):
            if wanted(self._order[self._front]):
                return self._run(self._front, longest, wanted)
            self._front += 1
        return None
