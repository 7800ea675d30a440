"""An RBD image, or one of its snapshots, as a block device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from drivers.ceph import binding, cluster, extents, session
from drivers.ceph.errors import translated
from drivers.ceph.lane import RbdLane
from whimbrel.errors import BaseLost, InvalidPlan, NotFound, Unavailable, Unsupported
from whimbrel.model.endpoint import RbdEndpoint
from whimbrel.model.extent import Extent
from whimbrel.ports.block import BlockLane


def open_rbd(endpoint: RbdEndpoint) -> RbdDevice:
    """The image behind an endpoint; the opener of kind ``rbd``.

    Raises NotFound (pool, image, snapshot, ceph.conf), AuthFailed, PermissionDenied, Conflict (session closed, or
    somebody else has the lock), BaseLost (``since`` is gone), Unavailable, Unsupported (no binding).
    """
    return RbdDevice(endpoint)


class RbdDevice:
    """Implements whimbrel.ports.block.BlockDevice over a cluster connection of its own."""

    def __init__(self, endpoint: RbdEndpoint) -> None:
        if endpoint.writable and endpoint.snapshot is not None:
            raise InvalidPlan(f"snapshot {endpoint.snapshot} of {endpoint.image} cannot be written")
        self._endpoint = endpoint
        self._turn = threading.Condition()
        self._users = 0
        self._closed = False
        self._lanes: list[RbdLane] = []
        self._cluster = cluster.connect(endpoint.conf, endpoint.user)
        self._ioctx: Any = None
        self._image: Any = None
        try:
            self._open()
        except BaseException:
            self._release()
            raise

    @property
    def name(self) -> str:
        """As Ceph writes it: ``pool/image@snapshot``."""
        at = f"@{self._endpoint.snapshot}" if self._endpoint.snapshot else ""
        return f"{self._endpoint.pool}/{self._endpoint.image}{at}"

    @property
    def size_bytes(self) -> int:
        """Length of the image or snapshot when it was opened."""
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return not self._endpoint.writable

    @property
    def block_bytes(self) -> int:
        """1: librbd takes any range."""
        return 1

    def lane(self) -> BlockLane:
        """See BlockDevice; lanes share the connection, which has many requests in flight by itself."""
        with self._turn:
            if self._closed:
                raise Unavailable(f"{self.name} was closed")
            lane = RbdLane(self)
            self._lanes.append(lane)
        return lane

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice; data below a clone's overlay counts. All of an image that is being imported is data."""
        end = self._end(start, length)
        if self._imports:
            # librbd 16 ends the process (assert, SIGFPE) when it is asked for the blocks of an import's image
            return iter([Extent(start, end - start)])
        return extents.allocation(extents.differences(self._ask, None, start, end - start), start, end)

    def changed(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See BlockDevice; what was zeroed or discarded since is marked ``zero``."""
        since = self._endpoint.since
        if since is None:
            raise Unsupported(f"{self.name} was opened without an earlier snapshot to compare with")
        yield from extents.differences(self._ask, since, start, self._end(start, length) - start)
        # librbd goes on to compare with a snapshot that was removed meanwhile, and may then leave pieces out
        self._check_base(since)

    @contextmanager
    def using(self) -> Iterator[Any]:
        """The open image, which is not closed inside the ``with``. Raises Unavailable once the device is closed."""
        with self._turn:
            if self._closed:
                raise Unavailable(f"{self.name} was closed")
            self._users += 1
        try:
            yield self._image
        finally:
            with self._turn:
                self._users -= 1
                self._turn.notify_all()

    def close(self) -> None:
        """Close lanes, image and connection; waits for requests that are in flight."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            for lane in self._lanes:
                lane.close()
            self._lanes.clear()
            self._turn.wait_for(lambda: self._users == 0)
        self._release()

    def _open(self) -> None:
        rbd = binding.load().rbd
        where = self._endpoint
        self._ioctx = cluster.open_pool(self._cluster, where.pool)
        with translated(f"opening {self.name}"):
            self._image = rbd.Image(self._ioctx, where.image, snapshot=where.snapshot, read_only=not where.writable)
            self._size_bytes = int(self._image.size())
            self._imports = bool(int(self._image.features()) & rbd.RBD_FEATURE_MIGRATING)
        if where.session is not None:
            look = session.check if where.writable else session.check_point
            look(self._image, where.session, self.name)
        if where.writable:
            session.take(self._image, self._cluster.get_addrs(), self.name)
            if where.session is not None:  # it may have ended before the lock was ours
                session.check(self._image, where.session, self.name)
        if where.since is not None:
            self._check_base(where.since)

    def _check_base(self, since: str) -> None:
        rbd = binding.load().rbd
        # opened anew: a handle that only reads is not told of changes
        with (
            self.using(),
            translated(f"listing snapshots of {self.name}"),
            rbd.Image(self._ioctx, self._endpoint.image, read_only=True) as now,
        ):
            known = {snapshot["name"]: snapshot["id"] for snapshot in now.list_snaps()}
        if since not in known:
            raise BaseLost(f"{self.name} has no snapshot {since} any more")
        if self._endpoint.snapshot is not None and known[since] >= known.get(self._endpoint.snapshot, 0):
            raise BaseLost(f"snapshot {since} is not older than {self.name}")

    def _ask(self, offset: int, length: int, since: str | None, *, whole_object: bool) -> list[Any]:
        found: list[tuple[int, int, bool]] = []
        with self.using() as image:
            try:
                with translated(f"asking {self.name} for its blocks"):
                    image.diff_iterate(
                        offset, length, since, lambda *piece: found.append(piece), whole_object=whole_object
                    )
            except NotFound as error:  # the snapshot was removed after the device was opened
                raise BaseLost(f"{self.name} has no snapshot {since} any more", cause=error) from error
        return found

    def _end(self, start: int, length: int | None) -> int:
        return self._size_bytes if length is None else min(start + length, self._size_bytes)

    def _release(self) -> None:
        """Never raises: the other side may be gone."""
        rados, rbd = binding.load()
        with suppress(rados.Error, rbd.Error):
            if self._image is not None:
                try:
                    if self._endpoint.writable:
                        session.leave(self._image, self._cluster.get_addrs())
                finally:
                    self._image.close()
        if self._ioctx is not None:
            self._ioctx.close()
        with suppress(rados.Error):
            self._cluster.shutdown()
