"""A disk of the in-memory cloud: the data plane's memory disk, with a bitmap for each token that was taken."""

from __future__ import annotations

from whimbrel.dataplane.memorydevice import BLOCK, MemoryDisk
from whimbrel.model.vm import DiskFormat

GRAIN_BYTES = BLOCK
"""Granularity of the tracking: 64 KiB, QEMU's default for qcow2 bitmaps."""


class Disk(MemoryDisk):
    """``size_bytes`` zeros at first. Thread-safe. Only qcow2 disks carry bitmaps.

    Every bitmap goes on growing until it is dropped, so that each answers for all that was written since its token.
    """

    def __init__(self, size_bytes: int, disk_format: DiskFormat) -> None:
        super().__init__(size_bytes, tracked=False)
        self.format = disk_format
        self._bitmaps: dict[str, set[int]] = {}
        self._damaged: set[str] = set()

    @property
    def trackable(self) -> bool:
        """Whether the format can carry bitmaps that survive a power cycle."""
        return self.format == "qcow2"

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write and mark the touched grains, as one act."""
        with self.lock:
            super().write(offset, data)
            self._mark(offset, len(data))

    def discard(self, offset: int, length: int) -> None:
        """Zero and mark the touched grains, as one act."""
        with self.lock:
            super().discard(offset, length)
            self._mark(offset, length)

    def freeze(self, *, since: str | None, token: str | None) -> MemoryDisk:
        """The content at this instant, with what changed ``since``; a bitmap named ``token`` starts at that instant.

        Raises KeyError when there is no bitmap ``since``.
        """
        with self.lock:
            frozen = self.snapshot()
            frozen.changed = None if since is None else set(self._bitmaps[since])
            if token is not None:
                self._bitmaps[token] = set()
                self._damaged.discard(token)
            return frozen

    def answers(self, token: str) -> bool:
        """Whether what changed since ``token`` is known."""
        with self.lock:
            return token in self._bitmaps and token not in self._damaged

    def tokens(self) -> list[str]:
        """Names of all bitmaps, damaged ones too."""
        with self.lock:
            return list(self._bitmaps)

    def damaged_tokens(self) -> list[str]:
        """Names of bitmaps that cannot answer any more."""
        with self.lock:
            return sorted(self._damaged)

    def add_bitmap(self, token: str) -> None:
        """Begin a bitmap outside any point, as another tool would."""
        with self.lock:
            self._bitmaps[token] = set()

    def drop(self, token: str) -> None:
        """Remove a bitmap; one that is not there is fine."""
        with self.lock:
            self._bitmaps.pop(token, None)
            self._damaged.discard(token)

    def damage(self) -> None:
        """What a crash of the hypervisor does to bitmaps that were only in its memory."""
        with self.lock:
            self._damaged.update(self._bitmaps)

    def _mark(self, offset: int, length: int) -> None:
        if length > 0:
            touched = range(offset // GRAIN_BYTES, (offset + length - 1) // GRAIN_BYTES + 1)
            for bitmap in self._bitmaps.values():
                bitmap.update(touched)
