"""Roles that Nova and Cinder do not have: running on served disks, and overlays over a stopped VM's disks."""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel.errors import Unsupported
from whimbrel.model.point import WriterSession
from whimbrel.model.vm import TargetDisk, VmSpec, VolumeRef

WHY = "this version's OpenStack driver has no streaming"
ACTION = "choose mode incremental or cold for this VM"


class NoServing:
    """``ServingPort`` of a cloud without ``serve_disks``."""

    def local_path(self, volume: VolumeRef) -> str:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def client(self) -> tuple[int, int] | None:
        """Not known."""
        return None

    def switch_disks(self, ref: str, disks: Sequence[TargetDisk], *, migration: str) -> None:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def stalled(self, ref: str) -> bool:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def served_disks(self, ref: str) -> Sequence[str]:
        """None is."""
        return ()


class NoShadows:
    """``ShadowPort`` of a cloud without ``shadows``."""

    def open(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> WriterSession:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def merge(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> int:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def drop(self, key: str, vm: VmSpec, disks: Sequence[str], *, migration: str) -> None:
        """Raises Unsupported."""
        raise Unsupported(WHY, action=ACTION)

    def owned(self, vm: VmSpec, migration: str) -> Sequence[str]:
        """None is."""
        return ()
