"""RBD live import: an image that is used before its bytes are there, and reads what it lacks from an HTTP address.

The steps are those of librbd's migration from an external source: prepare, execute, commit, or abort. Each looks at the
image first and does what is missing, so that it may be killed anywhere and called again. While an import goes on

* the image has the feature ``layering`` alone: with ``exclusive-lock`` a second client that writes takes the lock from
  the guest, whose writes then fail. So nothing but the caller keeps a second VM away until ``commit``.
* its cache policy is ``writeback``, in the image's metadata, where QEMU finds it: with librbd's default a write is
  acknowledged and lost when the source gave an error while its object was copied up.
* nobody asks it for its allocation: librbd ends the process (``device.RbdDevice.extents`` heeds that).

Seen with Ceph 16.2.15; docs/openstack.md tells what was tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from drivers.ceph import binding, execution, images
from drivers.ceph.cluster import connect, open_pool, pool_of
from drivers.ceph.errors import translated
from whimbrel.errors import Conflict, NotFound, NotReady, Unsupported, WhimbrelError

CACHE_POLICY = "conf_rbd_cache_policy"
"""Key of the image's metadata by which its clients set ``rbd_cache_policy``."""
SAFE_POLICY = "writeback"
OLDEST = 16
"""First release of Ceph with imports (Pacific)."""


class ImportState(StrEnum):
    """What an image is to an import."""

    ABSENT = "absent"
    PLAIN = "plain"
    """It has all its bytes: no import was begun, or it is committed."""
    PREPARED = "prepared"
    """Readable and writable; what it lacks comes from the source."""
    EXECUTING = "executing"
    EXECUTED = "executed"
    """It has all its bytes, and still asks the source to be there when it is opened."""
    BROKEN = "broken"
    """A step was cut off (preparing, aborting): only ``abort`` leads on."""

    @property
    def imports(self) -> bool:
        """Whether its clients need the source."""
        return self not in {ImportState.ABSENT, ImportState.PLAIN}


class RbdImports:
    """Imports into the images that one Ceph user can write.

    Every method may raise Unavailable, AuthFailed, PermissionDenied, NotFound (pool), Unsupported (no binding).
    """

    def __init__(self, *, conf: str = "/etc/ceph/ceph.conf", user: str = "admin") -> None:
        self.conf = conf
        self.user = user

    def why_not(self, pool: str) -> str:
        """Why this cluster cannot import into ``pool``; empty when it can."""
        if not hasattr(binding.load().rbd.RBD, "migration_prepare_import"):
            return "librbd on this worker is older than Ceph 16, which is the first that imports"
        try:
            cluster = connect(self.conf, self.user)
            try:
                release = _release(cluster)
                open_pool(cluster, pool).close()
            finally:
                cluster.shutdown()
        except WhimbrelError as error:
            if error.retryable:
                raise
            return error.message
        if release is not None and release < OLDEST:
            return f"the Ceph cluster is of release {release}; live import needs {OLDEST}"
        return ""

    def state(self, pool: str, image: str) -> ImportState:
        """What the image is now."""
        with pool_of(self.conf, self.user, pool) as (ioctx, _):
            return _state(ioctx, pool, image)

    def prepare(self, pool: str, image: str, url: str, *, size_bytes: int, object_bytes: int) -> None:
        """Put an import from ``url`` in the place of the empty image of this name; done before is fine.

        Raises Conflict (the image holds data, has snapshots or is open; it imports from elsewhere or has another size),
        Unsupported (it is mirrored, or has a data pool).
        ``url`` may hold a secret: it is in no message.
        """
        rbd = binding.load().rbd
        with pool_of(self.conf, self.user, pool) as (ioctx, client):
            found = _state(ioctx, pool, image)
            if found is ImportState.BROKEN:
                self.abort(pool, image)
                found = ImportState.ABSENT
            if found is ImportState.PLAIN:
                _remove_empty(ioctx, client, pool, image)
                found = ImportState.ABSENT
            if found is ImportState.ABSENT:
                spec = json.dumps({"type": "raw", "stream": {"type": "http", "url": url}})
                order = object_bytes.bit_length() - 1
                with translated(f"preparing the import into {pool}/{image}"):
                    rbd.RBD().migration_prepare_import(
                        spec, ioctx, image, features=rbd.RBD_FEATURE_LAYERING, order=order
                    )
            with _open(ioctx, pool, image) as opened:
                with translated(f"looking at {pool}/{image}"):
                    source = dict(opened.migration_source_spec())
                    known, size = source.get("stream", {}).get("url"), int(opened.size())
                if known != url:
                    raise Conflict(
                        f"{pool}/{image} imports from another address",
                        action="roll the migration back: that removes the image, which holds nothing of its own yet",
                    )
                if size != size_bytes:
                    raise Conflict(f"{pool}/{image} imports {size} bytes, not {size_bytes}")
                with translated(f"setting the cache policy of {pool}/{image}"):
                    opened.metadata_set(CACHE_POLICY, SAFE_POLICY)

    def check_usable(self, pool: str, image: str) -> None:
        """Raises Conflict unless a guest may be started on the image: see the head of this module.

        An image without an import is none of this module's business, and passes.
        """
        rbd = binding.load().rbd
        with pool_of(self.conf, self.user, pool) as (ioctx, client):
            if not _state(ioctx, pool, image).imports:
                return
            with _open(ioctx, pool, image, read_only=True) as opened, translated(f"looking at {pool}/{image}"):
                features = int(opened.features())
                told = dict(opened.metadata_list())
                policy = told.get(CACHE_POLICY)
                snapshots = list(opened.list_snaps())
                # who carries the import out may: it runs beside every guest
                watchers = images.watchers(opened, client, int(told.get(execution.EXECUTION, client)))
        name = f"{pool}/{image}"
        if policy != SAFE_POLICY:
            raise Conflict(
                f"{name} is imported with another cache policy than {SAFE_POLICY}: acknowledged writes could be lost",
                action="roll the migration back, or set it: rbd config image set IMAGE rbd_cache_policy writeback",
            )
        if features & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            raise Conflict(f"{name} is being imported and has exclusive-lock: a second client would stop the guest")
        if not snapshots:
            raise Conflict(f"{name} is being imported and has no snapshot: a rollback would lose what the guest writes")
        if watchers:
            raise NotReady(f"{name} is imported and open by {', '.join(watchers)}: nothing else keeps them apart")

    def execute(
        self,
        pool: str,
        image: str,
        *,
        requests: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> bool:
        """Bring every byte, in a process of its own; False when ``should_stop`` said so. Goes on where it was.

        ``on_progress`` gets objects done and objects in all. Raises NotFound (no import, no image), Unavailable (it
        ended; again goes on).
        """
        found = self.state(pool, image)
        if found in {ImportState.PLAIN, ImportState.EXECUTED}:
            return True
        if found not in {ImportState.PREPARED, ImportState.EXECUTING}:
            raise NotFound(f"{pool}/{image} is {found}: there is no import to carry out")
        where = execution.Job(conf=self.conf, user=self.user, pool=pool, image=image, requests=requests)
        return execution.run(where, should_stop=should_stop, on_progress=on_progress)

    def commit(self, pool: str, image: str) -> None:
        """Detach the image from its source, and make it as Cinder makes images; the guest may run. Again is fine.

        Raises NotReady while bytes are missing, NotFound (no such image).
        """
        rbd = binding.load().rbd
        with pool_of(self.conf, self.user, pool) as (ioctx, _):
            found = _state(ioctx, pool, image)
            if found is ImportState.ABSENT:
                raise NotFound(f"there is no image {pool}/{image}")
            if found is ImportState.EXECUTED:
                with translated(f"committing the import into {pool}/{image}"):
                    rbd.RBD().migration_commit(ioctx, image)
            elif found is not ImportState.PLAIN:
                raise NotReady(f"{pool}/{image} is {found}: not all of its bytes have arrived")
            with _open(ioctx, pool, image) as opened, translated(f"finishing the import into {pool}/{image}"):
                for key in {CACHE_POLICY, execution.EXECUTION} & set(dict(opened.metadata_list())):
                    opened.metadata_remove(key)
                wanted = rbd.RBD_FEATURE_EXCLUSIVE_LOCK | rbd.RBD_FEATURE_OBJECT_MAP | rbd.RBD_FEATURE_FAST_DIFF
                missing = wanted & ~int(opened.features())
                if missing:
                    opened.update_features(missing, enabled=True)
                if int(opened.flags()) & FLAG_OBJECT_MAP_INVALID:
                    opened.rebuild_object_map()

    def abort(self, pool: str, image: str) -> None:
        """Remove the image of an import that was not committed; one without an import is left alone.

        Raises NotReady (somebody has it open, or died less than half a minute ago), Conflict (it has snapshots).
        """
        rbd = binding.load().rbd
        with pool_of(self.conf, self.user, pool) as (ioctx, _):
            found = _state(ioctx, pool, image)
            if not found.imports:
                return
            if found is not ImportState.BROKEN:
                # librbd would remove them with the image, and with them what the guest wrote
                with _open(ioctx, pool, image, read_only=True) as opened, translated(f"looking at {pool}/{image}"):
                    snapshots = [str(snapshot["name"]) for snapshot in opened.list_snaps()]
                if snapshots:
                    raise Conflict(f"{pool}/{image} has snapshots: {', '.join(snapshots)}")
            with translated(f"removing the import {pool}/{image}"):
                try:
                    rbd.RBD().migration_abort(ioctx, image)
                except rbd.ImageBusy as error:
                    raise NotReady(f"{pool}/{image} is still open", cause=error) from error


FLAG_OBJECT_MAP_INVALID = 1
"""``RBD_FLAG_OBJECT_MAP_INVALID`` of librbd.h, which the binding does not name."""


def _state(ioctx: Any, pool: str, image: str) -> ImportState:
    rbd = binding.load().rbd
    by_number = {
        rbd.RBD_IMAGE_MIGRATION_STATE_PREPARED: ImportState.PREPARED,
        rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTING: ImportState.EXECUTING,
        rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTED: ImportState.EXECUTED,
    }
    with translated(f"asking for the import into {pool}/{image}"):
        if image not in rbd.RBD().list(ioctx):
            return ImportState.ABSENT
        try:
            status = rbd.RBD().migration_status(ioctx, image)
        except (rbd.InvalidArgument, rbd.ImageNotFound):
            return ImportState.PLAIN
    return by_number.get(status["state"], ImportState.BROKEN)


def _remove_empty(ioctx: Any, client: int, pool: str, image: str) -> None:
    """Remove an image that holds no byte. Raises Conflict for any other: it is somebody's.

    Raises Unsupported for one with traits that the import's image would not have.
    """
    rbd = binding.load().rbd
    traits = {rbd.RBD_FEATURE_JOURNALING: "a journal (mirroring)", rbd.RBD_FEATURE_DATA_POOL: "a data pool of its own"}
    found: list[object] = []
    with _open(ioctx, pool, image, read_only=True) as opened, translated(f"looking at {pool}/{image}"):
        others = images.watchers(opened, client)
        snapshots = list(opened.list_snaps())
        has = [name for feature, name in traits.items() if int(opened.features()) & feature]
        opened.diff_iterate(0, opened.size(), None, lambda *piece: found.append(piece))
    if has:
        raise Unsupported(
            f"{pool}/{image} has {' and '.join(has)}, which an import would take away",
            action="map the disk to a volume type without it, or use mode incremental",
        )
    if others:
        raise Conflict(f"{pool}/{image} is open by {', '.join(others)}", action="stop what has it open")
    if snapshots or found:
        raise Conflict(f"{pool}/{image} is not empty: no import is put in its place")
    with translated(f"removing the empty image {pool}/{image}"):
        rbd.RBD().remove(ioctx, image)


@contextmanager
def _open(ioctx: Any, pool: str, image: str, *, read_only: bool = False) -> Iterator[Any]:
    rbd = binding.load().rbd
    with translated(f"opening {pool}/{image}"):
        opened = rbd.Image(ioctx, image, read_only=read_only)
    try:
        yield opened
    finally:
        opened.close()


def _release(cluster: Any) -> int | None:
    """Number of the cluster's release (16 for Pacific); None for a user that may not ask."""
    code, answer, _ = cluster.mon_command(json.dumps({"prefix": "version", "format": "json"}), b"")
    if code:
        return None
    words = str(json.loads(answer).get("version", "")).split()
    return int(words[2].split(".")[0]) if len(words) > 2 and words[2][:1].isdigit() else None
