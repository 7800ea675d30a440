"""Waiting inside an activity, where its end would undo what is waited for; everywhere else Temporal asks again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from whimbrel.errors import NotReady

T = TypeVar("T")


def until_ready(call: Callable[[], T], patience_s: float, every_s: float) -> T:
    """What the call gives once the cloud has done it. Raises NotReady after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except NotReady:
            if time.monotonic() > deadline:
                raise
        time.sleep(every_s)
