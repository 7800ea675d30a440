"""A link of a given rate and delay between unix sockets, as a process: ``python -m tests.bench.paced_link``.

All connections share the rate in one direction: towards the client (a source's data), or with ``--up`` towards the
server (a shadow's writes); what comes first goes first. The delay is half on the way there, half on the way back. It
knows nothing of the protocol that passes.
"""

from __future__ import annotations

import argparse
import queue
import socket
import threading
import time

PIECE_BYTES = 16 << 10


class Link:
    """When a piece that comes now has passed."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def passes_at(self, length: int) -> float:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + length / self._rate
            return self._free_at


def carry(source: socket.socket, target: socket.socket, link: Link | None, delay_s: float) -> None:
    """One direction of one connection."""
    pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=4096)

    def deliver() -> None:
        while True:
            at, piece = pieces.get()
            if (left := at - time.monotonic()) > 0:
                time.sleep(left)
            try:
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
            except OSError:
                return

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        try:
            piece = source.recv(PIECE_BYTES)
        except OSError:
            piece = b""
        at = time.monotonic() if link is None else link.passes_at(len(piece))
        pieces.put((at + delay_s, piece))
        if not piece:
            return


def main() -> None:
    """Carry until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listen")
    parser.add_argument("connect")
    parser.add_argument("--rate", type=float, default=50e6)
    parser.add_argument("--up", action="store_true", help="pace what the client sends")
    parser.add_argument("--delay-s", type=float, default=0.001)
    options = parser.parse_args()
    link = Link(options.rate)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(options.listen)
        listening.listen(64)
        while True:
            near, _ = listening.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(options.connect)
            up, down = (link, None) if options.up else (None, link)
            for arguments in ((near, far, up), (far, near, down)):
                threading.Thread(target=carry, args=(*arguments, options.delay_s / 2), daemon=True).start()


if __name__ == "__main__":
    main()
