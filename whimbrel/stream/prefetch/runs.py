"""Sequential and strided runs, told apart while they happen, several at a time.

A stream is remembered by where it should go on. An access there confirms it and doubles its window, up to a bound; an
access that fits no stream begins one, which is given a short window at once: files lie together on a disk, so what
comes next is wanted often enough, and the score says where it is not.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.predictor import Proposal, Wanted

STREAMS: Final = 32
FIRST_WINDOW: Final = 2
CONFIRMED: Final = 2
"""So often a stream must have gone on before anything is read ahead of it."""
LARGEST_WINDOW: Final = 64
SLACK: Final = 4
"""A sequential reader may skip so many chunks and is still one."""
LARGEST_STRIDE: Final = 1 << 16
PENDING: Final = 256
PATIENCE: Final = 192


class _Stream:
    __slots__ = ("ahead", "at", "confirmed", "stride", "width", "window")

    def __init__(self, first: int, last: int) -> None:
        self.at = first
        self.width = last - first
        self.stride = 0
        """0: sequential; otherwise from begin to begin."""
        self.window = FIRST_WINDOW
        self.ahead = last
        """Up to here, or for a strided one down to here, it has been proposed."""
        self.confirmed = 0


class Runs:
    """Proposes what lies ahead of the guest's streams."""

    def __init__(self, name: str = "sequential") -> None:
        self.name = name
        self._streams: deque[_Stream] = deque(maxlen=STREAMS)
        self._pending: deque[tuple[int, int]] = deque(maxlen=PENDING)
        self._loose: deque[int] = deque(maxlen=STREAMS)

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Predictor. Only reads make streams: a write of whole chunks needs nothing fetched."""
        if access != "read":
            return
        for stream in reversed(self._streams):
            if self._goes_on(stream, first, last):
                self._streams.remove(stream)
                self._streams.append(stream)
                return
        stream = _Stream(first, last)
        stream.stride = self._stride_to(first)
        self._loose.append(first)
        self._streams.append(stream)
        if stream.stride:
            stream.confirmed = CONFIRMED
            self._extend(stream)

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """See Predictor. The latest first."""
        while self._pending:
            first, last = self._pending.pop()
            while first < last and not wanted(first):
                first += 1
            if first == last:
                continue
            end = first + 1
            while end < last and end - first < longest and wanted(end):
                end += 1
            if end < last:
                self._pending.append((end, last))
            return Proposal((first, end), PATIENCE)
        return None

    def _goes_on(self, stream: _Stream, first: int, last: int) -> bool:
        """Whether an access belongs to a stream, which is then moved along."""
        if stream.at <= first and last <= stream.at + stream.width:
            return True  # the same place again
        if stream.stride:
            fits = first == stream.at + stream.stride
        else:
            fits = stream.at <= first <= stream.at + stream.width + SLACK and last > stream.at + stream.width
        if not fits:
            return False
        stream.at, stream.width = first, last - first
        stream.confirmed += 1
        if stream.confirmed >= CONFIRMED:
            stream.window = min(stream.window * 2, LARGEST_WINDOW)
            self._extend(stream)
        return True

    def _extend(self, stream: _Stream) -> None:
        end = stream.at + stream.width
        if stream.stride:
            for step in range(min(stream.window, 8), 0, -1):
                first = stream.at + step * stream.stride
                self._pend(first, stream.width)
            return
        begin = max(stream.ahead, end)
        upto = end + stream.window
        # In halves, so that a window is asked for in few pieces rather than chunk by chunk.
        if upto - begin >= stream.window // 2:
            self._pend(begin, upto - begin)
            stream.ahead = upto

    def _pend(self, first: int, count: int) -> None:
        self._pending.append((first, first + count))

    def _stride_to(self, first: int) -> int:
        """The stride of which ``first`` is the third step among the loose accesses; 0: none."""
        loose = set(self._loose)
        for before in reversed(self._loose):
            stride = first - before
            if SLACK < abs(stride) <= LARGEST_STRIDE and before - stride in loose:
                return stride
        return 0
