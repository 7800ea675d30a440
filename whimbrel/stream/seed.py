"""A map for a target that was copied before: only what changed since is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.model.extent import Extent
from whimbrel.stream.chunkmap import CHUNK_BYTES, joined, open_map, sync_directory
from whimbrel.stream.config import StreamConfig
from whimbrel.stream.server import target_identity


def seeded(config: StreamConfig) -> bool:
    """Whether the map of ``config`` is there."""
    return Path(f"{config.map_stem}.durable").exists()


def seed_map(config: StreamConfig, missing: Iterable[Extent]) -> bool:
    """Make the map of ``config`` with all chunks local that ``missing`` does not touch; False if there is one.

    The target is synced before any mark is made, and the map appears under its name as a whole, so that a kill in
    the middle leaves nothing that a server would believe. Raises Conflict, OSError, and what the target raises.
    """
    stem, path = Path(config.map_stem), Path(config.target_path)
    durable, live = Path(f"{stem}.durable"), Path(f"{stem}.live")
    if seeded(config):
        return False
    seed = stem.with_name(f"{stem.name}.seed")
    # No server has run without a durable map, so a live one here was left by a seeding that was killed.
    for left in (live, *(Path(f"{seed}.{kind}") for kind in ("durable", "live", "lock"))):
        left.unlink(missing_ok=True)
    target = FileDevice(path, writable=True)
    try:
        target.flush()
    finally:
        target.close()
    made = open_map(seed, size_bytes=config.size_bytes, source=config.source_identity, target=target_identity(path))
    try:
        at = 0
        touched = [(extent.start // CHUNK_BYTES, -(-extent.end // CHUNK_BYTES)) for extent in missing]
        for first, last in joined(touched):
            if at < first:
                made.mark_local(at, first)
            at = last
        if at < made.chunks:
            made.mark_local(at, made.chunks)
        made.harden(made.take_changes())
    finally:
        made.close()
    Path(f"{seed}.live").rename(live)
    Path(f"{seed}.durable").rename(durable)
    Path(f"{seed}.lock").unlink(missing_ok=True)
    sync_directory(stem.parent)
    return True
