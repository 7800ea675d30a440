"""An image that is being imported, and a client that uses it as a guest's QEMU does."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drivers.ceph import RbdImports, binding
from drivers.ceph.cluster import connect, open_pool
from labs.openstack import CloudHandle
from tests.drivers.ceph.httpsource import HttpSource
from tests.drivers.ceph.scratch import ScratchImage

MIB = 1 << 20
SIZE = 24 * MIB
OBJECT = MIB
CONTENT = random.Random("import").randbytes(SIZE)


class GuestIo:
    """Opens the image read-write with librbd's cache on, as QEMU does, and heeds the image's own settings."""

    def __init__(self, imports: RbdImports, image: ScratchImage, **settings: str) -> None:
        rbd = binding.load().rbd
        self._cluster = connect(imports.conf, imports.user, rbd_cache="true", **settings)
        self._ioctx = open_pool(self._cluster, image.pool)
        self.image: Any = rbd.Image(self._ioctx, image.name)

    def write(self, offset: int, data: bytes, *, pause_s: float = 0.0) -> bool:
        """Write and flush, with a pause between; whether both were acknowledged."""
        rbd = binding.load().rbd
        try:
            self.image.write(data, offset)
            time.sleep(pause_s)
            self.image.flush()
        except rbd.Error:
            return False
        return True

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return bytes(self.image.read(offset, length))

    def close(self) -> None:
        """Let go of the image."""
        self.image.close()
        self._ioctx.close()
        self._cluster.shutdown()


@contextmanager
def guest_io(imports: RbdImports, image: ScratchImage, **settings: str) -> Iterator[GuestIo]:
    """A guest for a while."""
    guest = GuestIo(imports, image, **settings)
    try:
        yield guest
    finally:
        guest.close()


def imports_of(cloud: CloudHandle) -> RbdImports:
    """The driver with the lab cloud's key."""
    return RbdImports(conf=str(cloud.ceph_conf), user=cloud.ceph_user)


def prepare(imports: RbdImports, image: ScratchImage, source: HttpSource, **changes: Any) -> None:
    """Begin an import of the whole source with small objects."""
    wanted = {"size_bytes": len(source.content), "object_bytes": OBJECT, **changes}
    imports.prepare(image.pool, image.name, wanted.pop("url", source.url), **wanted)


def execute(imports: RbdImports, image: ScratchImage) -> bool:
    """Carry it out to the end."""
    return imports.execute(
        image.pool, image.name, requests=2, should_stop=lambda: False, on_progress=lambda _done, _total: None
    )


def patched(content: bytes, writes: dict[int, bytes]) -> bytes:
    """Content with writes over it."""
    changed = bytearray(content)
    for offset, data in writes.items():
        changed[offset : offset + len(data)] = data
    return bytes(changed)
