"""A trace played against a server, with the guest's own pauses.

What came close together in the trace was asked for at once, and is again; the next burst comes after the pause of the
trace, counted from when the last one was answered. So a guest that has to wait is late from then on, as a real one is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from whimbrel.ports.block import BlockDevice, BlockLane
from whimbrel.stream.prefetch.trace import Record

TOGETHER_S: Final = 0.0003
"""A local answer takes about as long; what came later than that may have depended on it."""
IN_FLIGHT: Final = 32
LARGEST_BYTES: Final = 16 << 20


@dataclass(slots=True)
class Played:
    """What a replay took."""

    elapsed_s: float = 0.0
    paused_s: float = 0.0
    """Of this, the guest's own pauses."""
    read_s: list[float] = field(default_factory=list)
    """How long each read took."""


def bursts(records: Iterable[Record]) -> Iterator[tuple[float, list[Record]]]:
    """Pauses, and what was asked for together after each."""
    before: float | None = None
    pause, burst = 0.0, list[Record]()
    for record in records:
        gap = 0.0 if before is None else record.at_s - before
        before = record.at_s
        if burst and (gap > TOGETHER_S or len(burst) == IN_FLIGHT):
            yield pause, burst
            pause, burst = max(gap, 0.0), []
        burst.append(record)
    if burst:
        yield pause, burst


def replay(
    device: BlockDevice,
    records: Iterable[Record],
    *,
    speed: float = 1.0,
    longest_pause_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Played:
    """Play records; pauses are divided by ``speed`` and cut to ``longest_pause_s``.

    Writes write a pattern: the target is spoiled. Trims become zeroes of the chunks that they cover whole. Raises what
    the device raises.
    """
    played = Played()
    began = time.monotonic()
    lane = device.lane()
    try:
        for pause_s, burst in bursts(records):
            if stopped():
                break
            scaled = pause_s / speed if longest_pause_s is None else min(pause_s / speed, longest_pause_s)
            if scaled > 0:
                time.sleep(scaled)
                played.paused_s += scaled
            _together(lane, burst, played)
    finally:
        lane.close()
    played.elapsed_s = time.monotonic() - began
    return played


def _together(lane: BlockLane, burst: list[Record], played: Played) -> None:
    sent: dict[int, tuple[float, Record]] = {}
    for record in burst:
        length = min(record.length, LARGEST_BYTES)
        now = time.monotonic()
        if record.access == "read":
            cookie = lane.submit_read(record.offset, memoryview(bytearray(length)))
        elif record.access == "write":
            cookie = lane.submit_write(record.offset, memoryview(b"\x5a" * length))
        else:
            first, last = -(-record.offset // 65536) * 65536, (record.offset + record.length) // 65536 * 65536
            if first >= last:
                continue
            cookie = lane.submit_zero(first, last - first)
        sent[cookie] = now, record
    while sent:
        started, record = sent.pop(lane.reap().cookie)
        if record.access == "read":
            played.read_s.append(time.monotonic() - started)
