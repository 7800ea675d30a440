"""The end of a lane: refused writes, flushes, closing, and exceptions thrown into its thread."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from tests.nbd.conftest import Serve
from tests.nbd.scripted_server import (
    FLUSH,
    HAS_FLAGS,
    SEND_ZEROES,
    Asked,
    Offer,
    Session,
    silence,
)
from tests.nbd.scripts import DATA, LaneTo, each
from whimbrel.errors import (
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
)
from whimbrel.nbd import open_nbd
from whimbrel.ports.block import BlockDevice, BlockLane


def test_a_device_opened_for_reading_refuses_writes(serve: Serve) -> None:
    device = open_nbd(serve(writable=False))
    lane = device.lane()
    with pytest.raises(PermissionDenied):
        lane.submit_write(0, memoryview(DATA))
    with pytest.raises(PermissionDenied):
        lane.submit_zero(0, 512)
    device.close()


def test_a_flush_error_is_raised(scripted_lane: LaneTo) -> None:
    lane = scripted_lane(each(lambda s, r: s.simple(r.cookie, 28 if r.command == FLUSH else 0)))
    with pytest.raises(QuotaExceeded, match="flush"):
        lane.flush()
    assert not lane.broken


def test_flush_without_the_command_sends_nothing(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        assert asked.command != FLUSH
        session.simple(asked.cookie)

    lane = scripted_lane(each(answer), offer=Offer(flags=HAS_FLAGS | SEND_ZEROES))
    lane.submit_zero(0, 512)
    lane.reap()
    lane.flush()


def test_close_from_another_thread_interrupts(scripted_lane: LaneTo) -> None:
    lane = scripted_lane(silence)
    lane.submit_read(0, memoryview(bytearray(512)))
    timer = threading.Timer(0.2, lane.close)
    timer.start()
    with pytest.raises(Unavailable, match="closed by us"):
        lane.reap()
    timer.join()
    lane.close()
    with pytest.raises(Unavailable):
        lane.submit_read(0, memoryview(bytearray(512)))


def test_an_exception_thrown_into_the_thread_ends_the_lane(
    scripted_lane: LaneTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal cancels an activity's thread like this; what follows on the wire must never be taken for a reply."""

    class Cancelled(BaseException):
        pass

    def cancelled() -> None:
        raise Cancelled

    lane = scripted_lane(each(lambda s, r: s.data(r.cookie, r.offset, DATA)))
    lane.submit_read(0, memoryview(bytearray(8192)))
    with monkeypatch.context() as patch:
        patch.setattr(lane._replies, "receive", cancelled)
        with pytest.raises(Cancelled):
            lane.reap()
    with pytest.raises(Unavailable, match="interrupted by Cancelled"):
        lane.reap()
    lane.close()


def test_the_ports_are_met(serve: Serve) -> None:
    device: BlockDevice = open_nbd(serve())
    lane: BlockLane = device.lane()
    assert (lane.in_flight, device.read_only) == (0, False)
    device.close()
    with pytest.raises(Unavailable, match="closed by us"):
        device.lane()


def test_close_says_goodbye(serve: Serve) -> None:
    ends: list[bytes] = []

    def script(session: Session) -> None:
        ends.append(session.read(28))

    device = open_nbd(serve(script))
    device.lane().close()
    device.close()
    device.close()
    deadline = time.monotonic() + 20
    while len(ends) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [struct.unpack(">IHH", end[:8]) for end in ends] == [(0x25609513, 0, 2)] * 2
