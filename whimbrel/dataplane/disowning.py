"""Somebody else is about to write the target: the manifest must not vouch for those places any more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from whimbrel.dataplane.digests import UNIT_BYTES
from whimbrel.dataplane.header import ManifestCorrupt
from whimbrel.dataplane.manifest import Manifest, discard_manifest
from whimbrel.model.extent import Extent, align


def disown(path: Path, size_bytes: int, extents: Iterable[Extent]) -> None:
    """Forget, durably, what the manifest at ``path`` knows of these extents; without a manifest nothing is known.

    Their units count as changed in the next copy by hashes. A damaged manifest is discarded: it vouches for nothing.
    Raises Unavailable (a copy holds it), QuotaExceeded.
    """
    if not path.exists():
        return
    try:
        with Manifest.open(path, size_bytes) as manifest:
            for extent in align(extents, UNIT_BYTES, size_bytes):
                manifest.forget(extent.start // UNIT_BYTES, -(-extent.length // UNIT_BYTES))
            manifest.flush()
    except ManifestCorrupt:
        discard_manifest(path)
