"""A streaming server in one object: target, map, source, background, listeners, periodic sync."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from whimbrel.dataplane.devices import open_device
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.errors import Conflict, Unavailable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import open_nbd
from whimbrel.ports.block import BlockDevice
from whimbrel.stream.chunkmap import ChunkMap, open_map, sync_directory
from whimbrel.stream.config import SourceEndpoint, StreamConfig
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.hostgovernor import HostGovernor
from whimbrel.stream.http.answers import Resource
from whimbrel.stream.http.front import HttpFront
from whimbrel.stream.http.token import read_token
from whimbrel.stream.hydration import Access, Sweeping
from whimbrel.stream.listener import Listener, listen_tcp, listen_unix
from whimbrel.stream.prefetch.assembly import Prefetch
from whimbrel.stream.prefetch.recorder import Recorder
from whimbrel.stream.prefetch.trace import TraceHeader
from whimbrel.stream.protect import guard
from whimbrel.stream.protect.shadow import ShadowEndpoint
from whimbrel.stream.source import Source
from whimbrel.stream.store import Store
from whimbrel.stream.window import Window
from whimbrel.stream.wire import server_context

log = logging.getLogger(__name__)


class StreamServer:
    """Serves from construction until ``stop``. ``http_socket`` is the one to listen on for HTTP, if others hold it.

    Raises InvalidPlan, Conflict, NotFound, QuotaExceeded, AuthFailed, Unavailable.
    """

    def __init__(self, config: StreamConfig, http_socket: socket.socket | None = None) -> None:
        self.config = config
        disk = _http_resource(config)
        tls = server_context(Path(config.tls.directory), verify_peer=config.tls.verify_peer) if config.tls else None
        self._target, self._map = open_target(config)
        self.store = Store(self._target, self._map)
        self.protection = self._open_protection()
        self.source = Source(
            _source_opener(config.source, config.source_timeout_s),
            config.size_bytes,
            fail_after_s=config.source_fail_after_s,
        )
        self.order = Sweeping(self._map)
        self.prefetch = Prefetch(config.prefetch, self._map, self.order)
        self._recorder = _recorder(config, self._map.chunk_bytes)
        self._governor = self._open_governor()
        self.fetcher = Fetcher(
            self.store,
            self.source,
            self.order,
            window=Window(config.window_bytes),
            governor=self._governor,
            background=config.background,
        )
        self.fetcher.set_bandwidth(config.bandwidth_bytes_per_s)
        self.listener = Listener(
            self.store,
            self.fetcher.statistics,
            self._accessed,
            export=config.export,
            tls=tls,
            protection=self.protection,
        )
        self._ending = threading.Event()
        self._syncing = threading.Thread(target=self._sync, name="sync", daemon=True)
        self._ports: list[int] = []
        if self.protection is not None:
            self.protection.start()
        self._listen()
        self.http = self._open_http(disk, http_socket)
        self.fetcher.start()
        self.prefetch.look(self.store, self.source, self.fetcher)
        self._syncing.start()

    def stop(self) -> None:
        """Orderly end: clients cut off, everything on stable storage, the map marked clean. Once."""
        self.listener.stop()
        if self.http is not None:
            self.http.stop()
        if self._recorder is not None:
            self._recorder.stop()
        self.fetcher.stop()
        self.prefetch.stop()
        if self.protection is not None:
            self.protection.stop()
        self._ending.set()
        self._syncing.join()
        clean = True
        try:
            self.store.flush()
        except WhimbrelError as error:
            log.warning("stop.not_synced", extra={"error": str(error)})
            clean = False
        if self.protection is not None:
            self.protection.close()
        self._map.close(clean=clean)
        self._target.close()
        if self._governor is not None:
            self._governor.close()

    def pause(self, paused: bool) -> None:
        """Let the background rest, and those who copy over HTTP; or go on. Guests are always served."""
        self.fetcher.pause(paused)
        if self.http is not None:
            self.http.traffic.pause(paused)

    def set_bandwidth(self, bytes_per_s: float | None) -> None:
        """Limit what the background fetches, and what is sent to those who copy. Raises ValueError unless positive."""
        self.fetcher.set_bandwidth(bytes_per_s)
        if self.http is not None:
            self.http.traffic.set_bandwidth(bytes_per_s)

    def move_source(self, endpoint: SourceEndpoint) -> None:
        """The same source (its identity is the caller's word) is served elsewhere from now on."""
        self.source.use(_source_opener(endpoint, self.config.source_timeout_s))

    def move_shadow(self, endpoint: ShadowEndpoint) -> None:
        """The same shadow is served elsewhere from now on. Raises InvalidPlan if there is none."""
        guard.move_shadow(self.protection, endpoint, timeout_s=self.config.source_timeout_s)

    def let_shadow_go(self) -> bool:
        """Writes need no shadow from now on; False while it is needed to make a crash of the host good."""
        return self.protection is None or self.protection.let_go()

    def status(self) -> dict[str, object]:
        """What there is to know, for JSON. Sizes in bytes."""
        chunkmap, fetcher = self._map, self.fetcher
        away, error = self.source.away_s, self.source.error
        return {
            "pid": os.getpid(),
            "target_path": self.config.target_path,
            "source_identity": self.config.source_identity,
            "size_bytes": chunkmap.size_bytes,
            "chunk_bytes": chunkmap.chunk_bytes,
            "chunks": chunkmap.chunks,
            "missing_chunks": chunkmap.missing_chunks,
            "written_chunks": chunkmap.written_chunks,
            "host_crashes": chunkmap.header.host_crashes,
            "complete": chunkmap.missing_chunks == 0,
            "waiting_chunks": self.store.waiting_chunks,
            "holes_known": fetcher.holes_known,
            "clients": self.listener.clients + (0 if self.http is None else self.http.clients),
            "ports": self._ports,
            "http": None if self.http is None else self.http.report(),
            "source": {
                "away_s": None if away is None else round(away, 3),
                "error": None if error is None else f"{error.code}: {error.message}",
            },
            "protect": guard.report(self.protection),
            "target_error": None if fetcher.target_error is None else fetcher.target_error.message,
            "background": {
                "paused": fetcher.paused,
                "window_bytes": fetcher.window.size_bytes,
                "window_fixed": fetcher.window.fixed,
                "bandwidth_bytes_per_s": fetcher.bandwidth_bytes_per_s,
                "rate_bytes_per_s": round(fetcher.window.rate_bytes_per_s),
            },
            "prefetch": self.prefetch.report(),
            "trace": None if self._recorder is None else self._recorder.report(),
            "statistics": fetcher.statistics.report(),
        }

    def _open_governor(self) -> HostGovernor | None:
        path, limit = self.config.governor_path, self.config.host_limit_bytes_per_s
        return HostGovernor(Path(path), limit) if path is not None and limit is not None else None

    def _open_protection(self) -> guard.Guard | None:
        stem, timeout_s = Path(self.config.map_stem), self.config.source_timeout_s
        try:
            return guard.open_protection(self.config.protect, self.store, self._map, stem, timeout_s=timeout_s)
        except BaseException:
            self._map.close()
            self._target.close()
            raise

    def _accessed(self, offset: int, length: int, access: Access, at: float) -> None:
        if self._recorder is not None:
            self._recorder.note(offset, length, access, at)
        self.order.accessed(*self.store.span(offset, length), access)

    def _listen(self) -> None:
        for place in self.config.listen:
            if place.unix_path is not None:
                sock = listen_unix(Path(place.unix_path), place.unix_mode, place.unix_client)
            else:
                sock = listen_tcp(str(place.host), place.port)
                self._ports.append(int(sock.getsockname()[1]))
            self.listener.listen(sock)

    def _open_http(self, disk: Resource | None, sock: socket.socket | None) -> HttpFront | None:
        http = self.config.http
        if http is None or disk is None:
            return None
        front = HttpFront(
            disk,
            self.store,
            self.fetcher,
            accessed=self._accessed,
            bulk_from=http.bulk_from,
            sock=sock or listen_tcp(http.address, http.port),
        )
        front.traffic.set_bandwidth(self.config.bandwidth_bytes_per_s)
        return front

    def _sync(self) -> None:
        """Make the hydration's work durable now and then, and the guest's flushes short by it."""
        seen = -1
        while not self._ending.wait(self.config.sync_every_s):
            missing = self._map.missing_chunks
            if missing == seen and not (self.protection is not None and self.protection.wants_sync()):
                continue
            try:
                self.store.flush()
                seen = missing
            except WhimbrelError as error:
                log.warning("sync.failed", extra={"error": str(error)})


def open_target(config: StreamConfig) -> tuple[FileDevice, ChunkMap]:
    """The target, made if the stream is new, and its map.

    Raises Conflict if they do not belong together, and what the target raises.
    """
    path, stem = Path(config.target_path), Path(config.map_stem)
    known = Path(f"{stem}.durable").exists()
    if not path.exists():
        if known:
            raise Conflict(
                f"the target {path} is gone, but its chunk map is there",
                action="bring the target back, or remove the map's files to start the stream anew",
            )
        _make(path, config.size_bytes)
    elif not known and path.is_file() and any(not extent.zero for extent in FileDevice(path).extents()):
        raise Conflict(
            f"the target {path} holds data, and there is no chunk map at {stem} that says which",
            action="bring the map back, or remove the target to start the stream anew",
        )
    device = FileDevice(path, writable=True)
    try:
        if device.size_bytes < config.size_bytes or (path.is_file() and device.size_bytes != config.size_bytes):
            raise Conflict(
                f"the target {path} has {device.size_bytes} bytes, the disk has {config.size_bytes}",
                action="give a target of the disk's size",
            )
        chunkmap = open_map(
            stem, size_bytes=config.size_bytes, source=config.source_identity, target=target_identity(path)
        )
    except OSError as failed:
        device.close()
        raise Unavailable(f"the chunk map {stem} cannot be used: {failed}", cause=failed) from failed
    except BaseException:
        device.close()
        raise
    return device, chunkmap


def target_identity(path: Path) -> str:
    """What tells this target from one that took its place: the inode of a file, the path of a block device."""
    status = path.stat()
    return f"block {path.resolve()}" if stat.S_ISBLK(status.st_mode) else f"inode {status.st_ino}"


def _http_resource(config: StreamConfig) -> Resource | None:
    if config.http is None:
        return None
    return Resource.of(read_token(Path(config.http.token_path)), config.source_identity, config.size_bytes)


def _recorder(config: StreamConfig, chunk_bytes: int) -> Recorder | None:
    if config.trace_path is None:
        return None
    header = TraceHeader(config.size_bytes, chunk_bytes, config.source_identity, time.time())
    return Recorder(Path(config.trace_path), header, max_bytes=config.trace_max_bytes)


def _make(path: Path, size_bytes: int) -> None:
    """An empty target whose existence is durable before any map speaks of it."""
    try:
        with path.open("xb") as file:
            file.truncate(size_bytes)
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as failed:
        raise Unavailable(f"cannot make the target {path}: {failed}", cause=failed) from failed


def _source_opener(endpoint: SourceEndpoint, timeout_s: float) -> Callable[[], BlockDevice]:
    if isinstance(endpoint, NbdEndpoint):
        return lambda: open_nbd(endpoint, timeout_s=timeout_s)
    return lambda: open_device(endpoint)
