"""What the tests of lanes share: data, one read, and a server that answers every request alike."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.nbd.scripted_server import Asked, Session
from whimbrel.nbd import NbdLane

LaneTo = Callable[..., NbdLane]
DATA = random.Random(7).randbytes(8192)


def read(lane: NbdLane, offset: int = 4096, length: int = 8192) -> bytes:
    buffer = bytearray(b"\xff" * length)
    lane.submit_read(offset, memoryview(buffer))
    lane.reap()
    return bytes(buffer)


def each(answer: Callable[[Session, Asked], None]) -> Callable[[Session], None]:
    """Answer every request in the same way."""

    def script(session: Session) -> None:
        while True:
            answer(session, session.request())

    return script
