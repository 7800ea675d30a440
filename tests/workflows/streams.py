"""Streaming servers inside the test's process: they can read the in-memory clouds' disks."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from whimbrel.errors import Unavailable
from whimbrel.stream import StreamServer
from whimbrel.stream.config import read_config
from whimbrel.stream.control import Control, ask
from whimbrel.stream.place import Place


class InProcessStreams:
    """What ``whimbrel.stream.launch`` does, with threads for processes. Sockets lie in a short directory of its own."""

    def __init__(self) -> None:
        self.socket_dir = Path(tempfile.mkdtemp(prefix="wb-"))
        self.launched: list[Path] = []
        self.kept_sockets: list[bool] = []
        """Of every stop: whether readers were to wait."""
        self._lock = threading.Lock()
        self._running: dict[str, tuple[StreamServer, threading.Thread]] = {}

    def launch(self, config_path: Path) -> None:
        """Start the server of a configuration, or leave the one that runs alone."""
        config = read_config(config_path)
        with self._lock:
            with suppress(Unavailable):
                ask(Path(config.control_path), "status")
                return
            self.launched.append(config_path)
            server = StreamServer(config)
            ending = threading.Event()
            control = Control(Path(config.control_path), server, ending.set)

            def serve() -> None:
                ending.wait()
                server.stop()
                control.close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            self._running[config.control_path] = (server, thread)

    def stop(self, place: Place, *, keep_socket: bool = False) -> None:
        """End the server of a disk, if one runs."""
        self.kept_sockets.append(keep_socket)
        running = self._running.pop(str(place.control), None)
        if running is not None:
            ask(place.control, "stop")
            running[1].join(30)
            assert not running[1].is_alive()

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def server(self, disk: str = "vda") -> StreamServer:
        """The server of a disk that was launched last."""
        return next(server for path, (server, _) in reversed(self._running.items()) if path.endswith(f"-{disk}.ctl"))

    def close(self) -> None:
        """End all."""
        for path, (_, thread) in self._running.items():
            with suppress(Unavailable):
                ask(Path(path), "stop")
            thread.join(10)
        for left in self.socket_dir.iterdir():
            left.unlink(missing_ok=True)
        self.socket_dir.rmdir()
