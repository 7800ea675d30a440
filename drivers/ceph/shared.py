"""Images of a pool that two clouds see: known by their lasting id, whatever they are called now.

An image's name is what a cloud opens it by; its id, and its metadata, stay when it is renamed. librbd renames in three
writes (the new name's object, the pool's directory, the old name's object: ``RenameRequest.cc``), and whoever does it
may die between them: then two names lead to one image. The directory says which one counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from drivers.ceph import binding, session
from drivers.ceph.cluster import connect, open_pool
from drivers.ceph.errors import translated
from whimbrel.errors import Conflict, NotFound, NotReady

OURS = "whimbrel."
NOTE = "whimbrel.note"
NOTE_BYTES = 4096
NAME_OBJECT = "rbd_id."
"""``RBD_ID_PREFIX`` in Ceph's ``rbd_types.h``: the object by which a name leads to an id."""


class SharedImage(NamedTuple):
    """One image, as it is now."""

    id: str
    name: str
    size_bytes: int
    identity: str
    """Cluster, pool and id: the same for whoever sees this very image, and of no copy."""
    parent: str
    """The snapshot that it is a clone of; empty for an image that stands alone."""
    snapshots: tuple[str, ...]
    watchers: tuple[str, ...]
    """Addresses of the clients that have it open for writing, or died less than half a minute ago."""
    session: str | None
    """Key of the session that writes it."""
    marks: Mapping[str, str]
    """What whimbrel has written into its metadata."""


class SharedImages:
    """The images that one Ceph user can reach. Every call connects anew and leaves nothing open.

    Every method may raise Unavailable, AuthFailed, PermissionDenied, NotFound (pool), Unsupported (no binding).
    """

    def __init__(self, conf: str, user: str) -> None:
        self._conf = conf
        self._user = user

    def ids(self, pool: str, names: Iterable[str]) -> dict[str, str]:
        """Ids by name, of those names that lead to an image."""
        with self._pool(pool) as opened:
            found = {name: _id_of(opened.ioctx, name) for name in names}
        return {name: image for name, image in found.items() if image is not None}

    def names(self, pool: str) -> dict[str, str]:
        """Ids of all images of the pool, by name."""
        with self._pool(pool) as opened, translated(f"listing the images of pool {pool}"):
            return {str(found["name"]): str(found["id"]) for found in binding.load().rbd.RBD().list2(opened.ioctx)}

    def get(self, pool: str, image: str) -> SharedImage:
        """The image with this id. Raises NotFound."""
        (found,) = self.all(pool, [image])
        return found

    def all(self, pool: str, images: Sequence[str]) -> list[SharedImage]:
        """Images by id, over one connection. Raises NotFound."""
        with self._pool(pool) as opened:
            cluster = str(opened.cluster.get_fsid())
            return [_look(opened, cluster, pool, image) for image in images]

    def rename(self, pool: str, image: str, to: str, *, never: Sequence[str] = ()) -> None:
        """Give the image this name, and see that none of ``never`` leads to it. Again is fine.

        Raises NotFound, Conflict (another image has the name), NotReady (somebody renames it at this moment).
        """
        with self._pool(pool) as opened, translated(f"renaming {pool}/{image}"):
            now = _name_of(opened.ioctx, image)
            if now is None:
                raise NotFound(f"pool {pool} has no image with the id {image}")
            if now != to:
                there = _id_of(opened.ioctx, to)
                if there == image:  # whoever began to give it this name has died
                    opened.ioctx.remove_object(NAME_OBJECT + to)
                elif there is not None:
                    raise Conflict(f"another image is named {pool}/{to}", action="rename that image", image=there)
                binding.load().rbd.RBD().rename(opened.ioctx, now, to)
            for name in {now, *never} - {to}:
                if _id_of(opened.ioctx, name) == image:  # whoever took this name away has died
                    opened.ioctx.remove_object(NAME_OBJECT + name)
            if _name_of(opened.ioctx, image) != to or _id_of(opened.ioctx, to) != image:
                raise NotReady(f"image {image} of pool {pool} is not named {to} after it was renamed")

    def mark(self, pool: str, image: str, key: str, text: str) -> None:
        """Write into the image's metadata; again: replaced. Raises NotFound."""
        with self._pool(pool) as opened, translated(f"marking {pool}/{image}"), _open(opened, image) as found:
            found.metadata_set(OURS + key, text)

    def unmark(self, pool: str, image: str, key: str) -> None:
        """Take it away again; one that is not there is fine. Raises NotFound (image)."""
        with self._pool(pool) as opened, translated(f"unmarking {pool}/{image}"), _open(opened, image) as found:
            if OURS + key in _marks(found):
                found.metadata_remove(OURS + key)

    def write_note(self, pool: str, name: str, text: str) -> None:
        """Leave a small image that has the text in its metadata; again: replaced."""
        rbd = binding.load().rbd
        with self._pool(pool) as opened, translated(f"writing the note {pool}/{name}"):
            if _id_of(opened.ioctx, name) is None:
                rbd.RBD().create(opened.ioctx, name, NOTE_BYTES, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
            with rbd.Image(opened.ioctx, name) as note:
                note.metadata_set(NOTE, text)

    def read_note(self, pool: str, name: str) -> str | None:
        """The text; None where there is no such note."""
        rbd = binding.load().rbd
        with self._pool(pool) as opened, translated(f"reading the note {pool}/{name}"):
            try:
                with rbd.Image(opened.ioctx, name, read_only=True) as note:
                    return _marks(note).get(NOTE)
            except rbd.ImageNotFound:
                return None

    def remove_note(self, pool: str, name: str) -> None:
        """Remove it; one that is not there is fine."""
        rbd = binding.load().rbd
        with self._pool(pool) as opened, translated(f"removing the note {pool}/{name}"):
            try:
                rbd.RBD().remove(opened.ioctx, name)
            except rbd.ImageNotFound:
                return

    @contextmanager
    def _pool(self, pool: str) -> Iterator[_Opened]:
        cluster = connect(self._conf, self._user)
        try:
            ioctx = open_pool(cluster, pool)
            try:
                yield _Opened(cluster, ioctx)
            finally:
                ioctx.close()
        finally:
            cluster.shutdown()


class _Opened(NamedTuple):
    cluster: Any
    ioctx: Any


@contextmanager
def _open(opened: _Opened, image: str, *, read_only: bool = False) -> Iterator[Any]:
    found = binding.load().rbd.Image(opened.ioctx, image_id=image, read_only=read_only)
    try:
        yield found
    finally:
        found.close()


def _look(opened: _Opened, cluster: str, pool: str, image: str) -> SharedImage:
    rbd = binding.load().rbd
    client = int(opened.cluster.get_instance_id())
    with translated(f"looking at image {image} of pool {pool}"), _open(opened, image, read_only=True) as found:
        try:
            above = found.get_parent_image_spec()
            parent = f"{above['pool_name']}/{above['image_name']}@{above['snap_name']}"
        except rbd.ImageNotFound:
            parent = ""
        return SharedImage(
            id=image,
            name=str(found.get_name()),
            size_bytes=int(found.size()),
            identity=f"{cluster}/{opened.ioctx.get_pool_id()}/{image}",
            parent=parent,
            snapshots=tuple(str(snapshot["name"]) for snapshot in found.list_snaps()),
            watchers=tuple(str(watcher["addr"]) for watcher in found.watchers_list() if watcher["id"] != client),
            session=session.of(found),
            marks={key.removeprefix(OURS): text for key, text in _marks(found).items()},
        )


def _marks(image: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in image.metadata_list() if str(key).startswith(OURS)}


def _id_of(ioctx: Any, name: str) -> str | None:
    """The image that a name leads to: a string after its length, as Ceph encodes it."""
    try:
        raw = ioctx.read(NAME_OBJECT + name)
    except binding.load().rados.ObjectNotFound:
        return None
    (length,) = struct.unpack_from("<I", raw)
    return bytes(raw[4 : 4 + length]).decode()


def _name_of(ioctx: Any, image: str) -> str | None:
    """The image's name by the pool's directory."""
    rbd = binding.load().rbd
    try:
        with rbd.Image(ioctx, image_id=image, read_only=True) as found:
            return str(found.get_name())
    except rbd.ImageNotFound:
        return None
