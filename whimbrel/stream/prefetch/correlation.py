"""What followed what in the history: proposes a chunk's usual followers even where the guest leaves the recorded order.

Learned once: every pair of touches at most ``LOOKAHEAD`` apart, nearer ones weigh more; the strongest ``FOLLOWERS``
of each chunk are kept. A chunk just touched proposes its followers, and these theirs, while the chain holds together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Final

from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.predictor import Proposal, Wanted
from whimbrel.stream.prefetch.trace import Trace

LOOKAHEAD: Final = 4
FOLLOWERS: Final = 4
DEPTH: Final = 4
LEARNED_MOST: Final = 4_000_000
"""Touches learned from; 64 MiB of trace hold more."""
PENDING: Final = 128
PATIENCE: Final = 128


def touches(trace: Trace, chunk_bytes: int) -> Iterator[int]:
    """Chunks read, in order, without immediate repetition."""
    before = -1
    for record in trace.records:
        if record.access == "read":
            for chunk in range(record.offset // chunk_bytes, -(-(record.offset + record.length) // chunk_bytes)):
                if chunk != before:
                    yield chunk
                before = chunk


def learn(sequences: Iterable[Iterable[int]]) -> dict[int, tuple[int, ...]]:
    """Followers of each chunk, strongest first."""
    weights: dict[int, Counter[int]] = {}
    learned = 0
    for sequence in sequences:
        recent: deque[int] = deque(maxlen=LOOKAHEAD)
        for chunk in sequence:
            for distance, before in enumerate(reversed(recent)):
                if before != chunk:
                    weights.setdefault(before, Counter())[chunk] += LOOKAHEAD - distance
            recent.append(chunk)
            learned += 1
            if learned >= LEARNED_MOST:
                break
    return {
        chunk: tuple(follower for follower, _ in counts.most_common(FOLLOWERS)) for chunk, counts in weights.items()
    }


class Correlation:
    """Proposes followers."""

    name = "correlation"

    def __init__(self, followers: dict[int, tuple[int, ...]]) -> None:
        self._followers = followers
        self._pending: deque[tuple[int, int]] = deque(maxlen=PENDING)

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor."""
        if access == "read":
            for chunk in {first, last - 1}:
                self._pend(chunk, DEPTH)

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor. The latest first."""
        for _ in range(PENDING):
            if not self._pending:
                return None
            chunk, depth = self._pending.pop()
            if depth > 1:
                self._pend(chunk, depth - 1)
            if wanted(chunk):
                return Proposal((chunk, chunk + 1), PATIENCE)
        return None

    def _pend(self, chunk: int, depth: int) -> None:
        for follower in reversed(self._followers.get(chunk, ())):
            self._pending.append((follower, depth))
