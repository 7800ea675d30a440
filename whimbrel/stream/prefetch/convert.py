"""QEMU's trace log as a trace: the running source's own accesses, without putting a server under it.

Turn the events on through QMP, ``trace-event-set-state {"name": "blk_co_preadv", "enable": true}`` and the same for
``blk_co_pwritev``, with the log backend; the lines go to the ``-D`` file. With ``-msg timestamp=on`` they begin with
``PID@SECONDS.MICROS:``; without, the order is kept and all times are 0. A log may hold several disks: their ``blk``
pointers tell them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from whimbrel.errors import InvalidPlan
from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.trace import Record

_LINE: Final = re.compile(
    r"(?:\d+@(?P<time>\d+\.\d+):)?blk_co_(?P<what>preadv|pwritev) "
    r"blk (?P<blk>\S+) bs \S+ offset (?P<offset>\d+) bytes (?P<bytes>\d+) "
)
_ACCESS: Final[dict[str, Access]] = {"preadv": "read", "pwritev": "write"}


def from_qemu_log(lines: Iterable[str], size_bytes: int, *, blk: str | None = None) -> list[Record]:
    """Records of one disk; other lines are passed over.

    ``blk`` is the disk's pointer as the log prints it; not needed if there is one only. Raises InvalidPlan if the log
    has no such accesses, several disks and no choice, or accesses beyond ``size_bytes``.
    """
    found = [line for line in map(_LINE.match, lines) if line is not None]
    disks = Counter(line["blk"] for line in found)
    if blk is None and len(disks) > 1:
        told = ", ".join(f"{name} ({count} accesses)" for name, count in disks.most_common())
        raise InvalidPlan(f"the log has several disks: {told}", action="name one of them")
    records = list(_records((line for line in found if blk in {None, line["blk"]}), size_bytes))
    if not records:
        raise InvalidPlan("the log has no blk_co_preadv or blk_co_pwritev event of that disk")
    return records


def _records(lines: Iterable[re.Match[str]], size_bytes: int) -> Iterator[Record]:
    began: float | None = None
    last = 0.0
    for line in lines:
        at = float(line["time"] or 0)
        began = at if began is None else began
        last = max(last, at - began)
        offset, length = int(line["offset"]), int(line["bytes"])
        if offset + length > size_bytes:
            raise InvalidPlan(f"the log has an access at {offset} + {length}, the disk ends at {size_bytes}")
        if length:
            yield Record(last, _ACCESS[line["what"]], offset, length)
