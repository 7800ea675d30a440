"""Carrying out an import in a process of its own: librbd's call cannot be stopped from outside, a process can.

The process (``executing``) ends at once when its standard input is closed, as it is when its parent dies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from whimbrel.errors import Unavailable
from whimbrel.model.endpoint import Frozen

LOOK_S = 0.1
EXECUTION = "whimbrel.execution"
"""Key of an image's metadata: the client that carries its import out, or did last. A guest may start beside it."""


class Job(Frozen):
    """Which import, and how many objects at once."""

    conf: str
    user: str
    pool: str
    image: str
    requests: int = 2

    @property
    def name(self) -> str:
        """As Ceph writes it."""
        return f"{self.pool}/{self.image}"


def run(job: Job, *, should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]) -> bool:
    """Carry the import out; False when ``should_stop`` said so, with the process gone.

    Raises Unavailable when the process failed or died: the import goes on where it was when it is called again.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "drivers.ceph.executing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    told: dict[str, Any] = {}
    reader = threading.Thread(target=_read, args=(process, told), daemon=True)
    try:
        assert process.stdin is not None
        try:
            process.stdin.write(job.model_dump_json() + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            told["error"] = "it ended at once"
        reader.start()
        while process.poll() is None:
            if should_stop():
                return False
            if "total" in told:
                on_progress(told["done"], told["total"])
            time.sleep(LOOK_S)
        reader.join(10)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()
    if process.returncode:
        why = told.get("error") or f"its process ended with status {process.returncode}"
        raise Unavailable(f"the import into {job.name} stopped: {why}", action="nothing: it goes on where it was")
    if "total" in told:
        on_progress(told["total"], told["total"])
    return True


def _read(process: subprocess.Popen[str], told: dict[str, Any]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            told.update(json.loads(line))
    except ValueError:
        return  # cut off by a kill, or closed by us
