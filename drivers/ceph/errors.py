"""What Ceph's errors mean here: one table from errno to the taxonomy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.ceph import binding
from whimbrel.errors import (
    Conflict,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)

KEPT = ", then resume (or cutover again): what was copied is kept"

BY_ERRNO: dict[int, tuple[type[WhimbrelError], str, str | None]] = {
    errno.ENOENT: (NotFound, "it does not exist", None),
    errno.EPERM: (
        PermissionDenied,
        "the key does not allow it",
        "give the Ceph user `profile rbd` on the monitors, the manager and this pool",
    ),
    errno.EACCES: (
        PermissionDenied,
        "the key does not allow it",
        "give the Ceph user `profile rbd` on the monitors, the manager and this pool",
    ),
    errno.EROFS: (Conflict, "another client holds its exclusive lock", "end the VM or tool that has the image open"),
    errno.EBUSY: (Conflict, "another client has it open", "end the VM or tool that has the image open"),
    errno.EEXIST: (Conflict, "it exists already", None),
    errno.ENOTEMPTY: (Conflict, "it has snapshots", "remove the snapshots that are not needed"),
    errno.ESHUTDOWN: (Unavailable, "another client has taken the image over and shut this one out", None),
    errno.ENOSPC: (QuotaExceeded, "the pool is full", "add storage or free space in the pool" + KEPT),
    errno.EDQUOT: (
        QuotaExceeded,
        "the pool's quota is used up",
        "raise the pool's quota (`ceph osd pool set-quota`) or free space in it" + KEPT,
    ),
    errno.ETIMEDOUT: (Unavailable, "the cluster did not answer in time", None),
    errno.ENOSYS: (Unsupported, "this version of Ceph cannot do it", None),
    errno.EOPNOTSUPP: (Unsupported, "this version of Ceph cannot do it", None),
    errno.EINVAL: (Unsupported, "Ceph refuses the request as invalid", None),
    errno.ERANGE: (Unsupported, "it is out of range", None),
}


def from_errno(number: int, what: str, *, cause: BaseException | None = None) -> WhimbrelError:
    """The error for ``what`` (``reading pool/image``) that failed with an errno, positive or negative."""
    number = abs(number)
    kind, why, action = BY_ERRNO.get(number, (Unavailable, os.strerror(number) if number else "no reason given", None))
    return kind(f"{what} failed: {why}", action=action, cause=cause, errno=errno.errorcode.get(number, number))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Let Ceph's exceptions leave as ours; ``what`` is what was tried."""
    rados, rbd = binding.load()
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        raise from_errno(getattr(error, "errno", 0) or 0, what, cause=error) from error
