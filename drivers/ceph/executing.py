"""The process that carries an import out; ``execution`` starts it.

It is told what to do on its standard input, tells its progress on its standard output as lines of JSON, and ends when
its standard input is closed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from drivers.ceph import binding
from drivers.ceph.cluster import connect, open_pool
from drivers.ceph.errors import from_errno
from drivers.ceph.execution import EXECUTION, Job
from whimbrel.errors import WhimbrelError

TELL_S = 0.5
ENDED_TO_BE_TOLD = 3


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(ENDED_TO_BE_TOLD)


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def carry_out(job: Job) -> None:
    """The call itself; blocks until every object is there. Raises what librbd raises, translated."""
    rados, rbd = binding.load()
    cluster = connect(job.conf, job.user, rbd_concurrent_management_ops=str(job.requests))
    last = 0.0

    def on_progress(done: int, total: int) -> int:
        nonlocal last
        now = time.monotonic()
        if now - last >= TELL_S or done == total:
            last = now
            _tell(done=done, total=total)
        return 0

    try:
        ioctx = open_pool(cluster, job.pool)
        try:
            with rbd.Image(ioctx, job.image) as image:
                image.metadata_set(EXECUTION, str(cluster.get_instance_id()))
            rbd.RBD().migration_execute(ioctx, job.image, on_progress)
        finally:
            ioctx.close()
    except (rados.Error, rbd.Error) as error:
        raise from_errno(getattr(error, "errno", 0) or 0, f"importing into {job.name}", cause=error) from error
    finally:
        cluster.shutdown()


def main() -> int:
    """Read the job, carry it out; 0 when all is there, 1 with the reason told."""
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        carry_out(job)
    except WhimbrelError as error:
        _tell(error=error.message)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that reads would be waited for
