"""A connection to a Ceph cluster, with an end to every wait."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from drivers.ceph import binding
from drivers.ceph.errors import from_errno, translated
from whimbrel.errors import AuthFailed, NotFound

CONNECT_TIMEOUT_S = 15
SETTINGS = {
    "client_mount_timeout": str(CONNECT_TIMEOUT_S),
    "rados_mon_op_timeout": "30",
    # librados would wait for ever for a cluster that is away, and no Python thread can be ended from outside.
    "rados_osd_op_timeout": "60",
    # Copies are large and in order: a cache would only hold acknowledged writes back (docs/openstack.md).
    "rbd_cache": "false",
}


def connect(conf: str, user: str, **more: str) -> Any:
    """A ``rados.Rados`` that is connected: a client of its own, which can be shut out alone. ``more`` are settings.

    Raises NotFound (no such file), AuthFailed (key missing or refused), Unavailable.
    """
    rados = binding.load().rados
    if not Path(conf).is_file():
        raise NotFound(
            f"there is no Ceph configuration {conf} on this machine",
            action="put ceph.conf and the keyring that it names there, or correct ceph.conf in whimbrel.yaml",
        )
    try:
        cluster = rados.Rados(conffile=conf, rados_id=user, conf={**SETTINGS, **more})
        cluster.connect(timeout=CONNECT_TIMEOUT_S)
    except rados.Error as error:
        number = abs(getattr(error, "errno", 0) or 0)
        # ObjectNotFound is how librados says that it found no keyring for the user
        if number in {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EKEYREJECTED}:
            raise AuthFailed(
                f"Ceph does not let client.{user} in",
                action=f"check that {conf} names the keyring of client.{user}, and that the worker can read it",
                cause=error,
            ) from error
        raise from_errno(number, f"connecting to the Ceph cluster of {conf}", cause=error) from error
    return cluster


def open_pool(cluster: Any, pool: str) -> Any:
    """The pool's ``ioctx``. Raises NotFound.

    A full pool refuses its writes (``CEPH_OSD_FLAG_FULL_TRY``). By itself librados holds all of them back without a
    word until there is room again, also those that free some and those that take none, as locks and metadata.
    """
    with translated(f"opening Ceph pool {pool}"):
        ioctx = cluster.open_ioctx(pool)
        ioctx.set_osdmap_full_try()  # the binding's name for it; it holds for the pool's own flags as well
        return ioctx


class Pool(NamedTuple):
    """A pool opened for a short call."""

    ioctx: Any
    client: int
    """Instance id of the connection: watchers with it are this call itself."""


@contextmanager
def pool_of(conf: str, user: str, pool: str) -> Iterator[Pool]:
    """A pool over a connection that ends with the ``with``."""
    cluster = connect(conf, user)
    try:
        ioctx = open_pool(cluster, pool)
        try:
            yield Pool(ioctx, int(cluster.get_instance_id()))
        finally:
            ioctx.close()
    finally:
        cluster.shutdown()
