"""Volumes whose images are imported while a server runs on them: the mark that says so, and what does it.

The driver of Ceph is handed in by the worker (``drivers.ceph.RbdImports``): drivers know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

IMPORT = "whimbrel_import"
"""On a volume: the migration that imports it. Written before its image is replaced, gone when the image is detached."""


class ImageState(Protocol):
    """What an image is to an import."""

    @property
    def imports(self) -> bool:
        """Whether its clients need the source."""
        ...


class LiveImages(Protocol):
    """Imports into images of the storage; every method may raise Unavailable, AuthFailed, PermissionDenied."""

    def why_not(self, pool: str) -> str:
        """Why images of this pool cannot be imported; empty when they can."""
        ...

    def state(self, pool: str, image: str) -> ImageState:
        """What the image is now."""
        ...

    def prepare(self, pool: str, image: str, url: str, *, size_bytes: int, object_bytes: int) -> None:
        """Put an import in the place of the empty image. Raises Conflict, Unsupported."""
        ...

    def check_usable(self, pool: str, image: str) -> None:
        """Raises Conflict or NotReady unless a server may be started on it; passes for what is no import."""
        ...

    def execute(
        self,
        pool: str,
        image: str,
        *,
        requests: int,
        should_stop: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> bool:
        """Bring every object; False when ``should_stop`` said so. Raises NotFound."""
        ...

    def commit(self, pool: str, image: str) -> None:
        """Detach it. Raises NotReady, NotFound."""
        ...

    def abort(self, pool: str, image: str) -> None:
        """Remove it unless it was committed. Raises NotReady, Conflict."""
        ...


def importing(volume: Any) -> str | None:
    """The migration that imports the volume; None when nobody does."""
    found = (volume.metadata or {}).get(IMPORT)
    return str(found) if found else None
