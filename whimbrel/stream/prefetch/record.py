"""A disk behind the server, only to record it: everything is local, so nothing is fetched and nothing is copied."""

from __future__ import annotations

from pathlib import Path

from whimbrel.errors import NotFound
from whimbrel.model.endpoint import FileEndpoint
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.config import ListenAt, PrefetchConfig, StreamConfig
from whimbrel.stream.server import StreamServer, target_identity


def pass_through(disk: Path, socket: Path, trace: Path, state: Path, *, identity: str = "") -> StreamServer:
    """Serve ``disk`` (raw file or block device) at a unix socket, in place, and record into ``trace``.

    ``state`` is a directory for the map and the control socket's name. The disk must not be open elsewhere. Raises
    NotFound, and what StreamServer raises.
    """
    if not disk.exists():
        raise NotFound(f"there is no disk at {disk}")
    with disk.open("rb") as file:
        size_bytes = file.seek(0, 2)
    name = identity or f"disk {disk}"
    stem = state / "pass-through"
    chunkmap = open_map(stem, size_bytes=size_bytes, source=name, target=target_identity(disk))
    chunkmap.mark_local(0, chunkmap.chunks)
    chunkmap.harden(chunkmap.take_changes())
    chunkmap.close(clean=True)
    return StreamServer(
        StreamConfig(
            target_path=str(disk),
            map_stem=str(stem),
            size_bytes=size_bytes,
            source=FileEndpoint(path=str(disk)),
            source_identity=name,
            listen=(ListenAt(unix_path=str(socket)),),
            control_path=str(state / "control"),
            trace_path=str(trace),
            prefetch=PrefetchConfig(sequential=False, locality=False, bootset=False),
        )
    )
