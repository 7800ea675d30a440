"""Runs tasks that read a disk, many at once, and fetches together what they lack."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from whimbrel.stream.prefetch.bootset.view import Absent, Unreadable, View

TASKS_MOST: Final = 50_000

NONSENSE: Final = (Unreadable, struct.error, IndexError, ValueError, OverflowError)
"""What reading somebody else's bytes may come to."""

Task = Callable[[], Iterable["Task"]]
"""What it returns is to be done as well. Raising Absent, it is called again later; Unreadable ends it quietly."""


def settle(view: View, tasks: Iterable[Task]) -> None:
    """Until all are done, or there were too many. Raises Spent, and what the view's fetch raises."""
    ready = deque(tasks)
    begun = len(ready)
    while ready:
        waiting: list[Task] = []
        absent: set[int] = set()
        while ready:
            task = ready.popleft()
            try:
                more = list(task())
            except Absent as lacking:
                absent |= lacking.chunks
                waiting.append(task)
            except NONSENSE:
                continue
            else:
                begun += len(more)
                if begun <= TASKS_MOST:
                    ready.extend(more)
        view.bring(absent)
        ready.extend(waiting)
