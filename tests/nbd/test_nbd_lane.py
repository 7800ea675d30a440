"""A lane against servers that answer in every lawful way, and in many that are not."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.nbd.conftest import Serve
from tests.nbd.scripted_server import (
    HAS_FLAGS,
    READ,
    SIZE,
    WRITE,
    ZEROES,
    Asked,
    Offer,
    Session,
    silence,
)
from tests.nbd.scripts import DATA, LaneTo, each, read
from whimbrel.errors import (
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)
from whimbrel.nbd import open_nbd

PLAIN = Offer(structured=False)


def test_a_read_in_one_chunk(scripted_lane: LaneTo) -> None:
    assert read(scripted_lane(each(lambda s, r: s.data(r.cookie, r.offset, DATA)))) == DATA


def test_a_simple_read(scripted_lane: LaneTo) -> None:
    assert read(scripted_lane(each(lambda s, r: s.simple(r.cookie, 0, DATA)), offer=PLAIN)) == DATA


def test_a_lane_asks_for_simple_replies_unless_told_otherwise(serve: Serve) -> None:
    script = each(lambda s, r: s.simple(r.cookie, 0, DATA))
    for structured in (False, True):
        device = open_nbd(serve(silence, script), timeout_s=20, structured_lanes=structured)
        lane = device.lane()
        assert lane.export.structured is structured
        if structured:
            with pytest.raises(Unavailable, match="needs a structured one"):
                read(lane)
        else:
            assert read(lane) == DATA
        device.close()


def test_simple_replies_in_any_order_and_in_crumbs(scripted_lane: LaneTo) -> None:
    def script(session: Session) -> None:
        asked = [session.request() for _ in range(4)]
        said = b"".join(
            struct.pack(">IIQ", 0x67446698, 0, one.cookie) + DATA[one.offset : one.offset + one.length]
            for one in reversed(asked)
        )
        for at in range(0, len(said), 77):
            session.send(said[at : at + 77])
        session.silent()

    lane = scripted_lane(script, offer=PLAIN)
    buffers = [bytearray(2048) for _ in range(4)]
    cookies = [lane.submit_read(index * 2048, memoryview(buffer)) for index, buffer in enumerate(buffers)]
    assert [lane.reap().cookie for _ in range(4)] == cookies[::-1]
    assert b"".join(buffers) == DATA


def test_a_simple_error_has_no_payload_and_belongs_to_its_read_alone(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.simple(asked.cookie, 5 if asked.offset else 0, b"" if asked.offset else DATA)

    lane = scripted_lane(each(answer), offer=PLAIN)
    for _ in range(3):
        with pytest.raises(Unavailable, match="EIO") as caught:
            read(lane)
        assert "cookie" in caught.value.evidence
        assert read(lane, 0) == DATA
    assert not lane.broken


@pytest.mark.parametrize("said", [0, 7, 16, 100])
def test_death_within_a_simple_reply(scripted_lane: LaneTo, said: int) -> None:
    def script(session: Session) -> None:
        asked = session.request()
        session.send((struct.pack(">IIQ", 0x67446698, 0, asked.cookie) + DATA)[:said])
        raise EOFError

    with pytest.raises(Unavailable, match=r"closed the connection|reset"):
        read(scripted_lane(script, offer=PLAIN))


def test_chunks_in_any_order_with_a_hole(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.data(asked.cookie, asked.offset + 6000, DATA[6000:], done=False)
        session.hole(asked.cookie, asked.offset + 1000, 5000, done=False)
        session.data(asked.cookie, asked.offset, DATA[:1000], done=False)
        session.chunk(asked.cookie, 0)

    assert read(scripted_lane(each(answer))) == DATA[:1000] + bytes(5000) + DATA[6000:]


def test_chunks_of_several_reads_mixed(scripted_lane: LaneTo) -> None:
    def script(session: Session) -> None:
        asked = [session.request() for _ in range(5)]
        for start in (4096, 0):
            for one in reversed(asked):
                session.data(one.cookie, one.offset + start, DATA[start : start + 4096], done=start == 0)
        session.silent()

    lane = scripted_lane(script)
    buffers = [bytearray(8192) for _ in range(5)]
    cookies = [lane.submit_read(index * 8192, memoryview(buffer)) for index, buffer in enumerate(buffers)]
    assert lane.in_flight == 5
    done = [lane.reap() for _ in range(5)]
    assert [one.cookie for one in done] == cookies[::-1]
    assert [(one.operation, one.offset, one.length) for one in done][-1] == ("read", 0, 8192)
    assert lane.in_flight == 0
    assert all(buffer == DATA for buffer in buffers)


def test_replies_that_come_in_crumbs(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        head = struct.pack(">IHHQI", 0x668E33EF, 1, 1, asked.cookie, 8 + 64) + struct.pack(">Q", asked.offset)
        for byte in head + DATA[:64]:
            session.send(bytes([byte]))
            time.sleep(0.001)

    assert read(scripted_lane(each(answer)), length=64) == DATA[:64]


def test_hundreds_of_acknowledgements_in_one_piece(scripted_lane: LaneTo) -> None:
    def script(session: Session) -> None:
        asked = [session.request() for _ in range(700)]
        session.send(b"".join(struct.pack(">IIQ", 0x67446698, 0, one.cookie) for one in asked))
        last = session.request()
        session.data(last.cookie, last.offset, DATA)
        session.silent()

    lane = scripted_lane(script)
    for index in range(700):
        lane.submit_write(index * 512, memoryview(DATA)[:512])
    for _ in range(700):
        lane.reap()
    assert read(lane) == DATA


LIES = [
    ("wrong magic", lambda s, r: s.simple(r.cookie, 0, DATA, magic=0x67446699)),
    ("cookie", lambda s, r: s.data(r.cookie + 1, r.offset, DATA)),
    ("simple reply", lambda s, r: s.simple(r.cookie, 0, DATA)),
    ("not asked for", lambda s, r: s.data(r.cookie, r.offset, DATA + b"x")),
    ("not asked for", lambda s, r: s.data(r.cookie, r.offset - 1, DATA)),
    ("hole that was not asked for", lambda s, r: s.hole(r.cookie, r.offset + 1, len(DATA))),
    ("hole that was not asked for", lambda s, r: s.hole(r.cookie, r.offset, 0xFFFFFFFF)),
    ("hole that was not asked for", lambda s, r: s.hole(r.cookie, r.offset, 0)),
    ("hole chunk of a wrong length", lambda s, r: s.chunk(r.cookie, 2, bytes(8))),
    ("gap or overlap", lambda s, r: s.data(r.cookie, r.offset, DATA[:-1])),
    ("gap or overlap", lambda s, r: s.chunk(r.cookie, 0)),
    ("without data", lambda s, r: s.chunk(r.cookie, 1, bytes(8))),
    ("without data", lambda s, r: s.chunk(r.cookie, 1, bytes(3))),
    ("type NONE", lambda s, r: s.chunk(r.cookie, 0, b"x")),
    ("type NONE", lambda s, r: s.chunk(r.cookie, 0, done=False)),
    ("unknown kind", lambda s, r: s.chunk(r.cookie, 99)),
    ("block status", lambda s, r: s.status(r.cookie, 1, (4096, 0))),
    ("error chunk of a wrong length", lambda s, r: s.chunk(r.cookie, 0x8001, b"\0")),
    ("error chunk of a wrong length", lambda s, r: s.chunk(r.cookie, 0x8001, bytes(70000))),
    ("without an error", lambda s, r: s.chunk(r.cookie, 0x8001, struct.pack(">IH", 0, 0))),
    ("cut short", lambda s, r: s.chunk(r.cookie, 0x8001, struct.pack(">IH", 5, 100))),
]


@pytest.mark.parametrize(("rule", "answer"), LIES)
def test_a_liar_is_told_and_left(scripted_lane: LaneTo, rule: str, answer: Callable[[Session, Asked], None]) -> None:
    lane = scripted_lane(each(answer))
    with pytest.raises(Unavailable) as caught:
        read(lane)
    assert rule in caught.value.evidence["protocol"]
    assert caught.value.evidence["in_flight"] == "1"
    assert lane.broken
    for again in (lane.reap, lane.flush, lambda: lane.submit_read(0, memoryview(bytearray(1)))):
        with pytest.raises(Unavailable) as repeated:
            again()
        assert repeated.value.evidence["protocol"] == caught.value.evidence["protocol"]


def test_overlapping_chunks_of_the_right_total_are_noticed(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.data(asked.cookie, asked.offset, DATA[:4096], done=False)
        session.data(asked.cookie, asked.offset, DATA[:4096])

    with pytest.raises(Unavailable, match="gap or overlap"):
        read(scripted_lane(each(answer)))


def test_a_structured_reply_that_nobody_asked_for(scripted_lane: LaneTo) -> None:
    with pytest.raises(Unavailable, match="nobody asked"):
        read(scripted_lane(each(lambda s, r: s.data(r.cookie, r.offset, DATA)), offer=PLAIN))


def test_an_acknowledgement_twice(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.simple(asked.cookie)
        session.simple(asked.cookie)

    lane = scripted_lane(each(answer))
    lane.submit_write(0, memoryview(DATA))
    lane.reap()
    lane.submit_write(0, memoryview(DATA))
    with pytest.raises(Unavailable, match="not in flight"):
        [lane.reap() for _ in range(2)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, PermissionDenied),
        (5, Unavailable),
        (12, Unavailable),
        (22, Unsupported),
        (28, QuotaExceeded),
        (75, Unsupported),
        (95, Unsupported),
        (108, Unavailable),
        (4711, Unavailable),
    ],
)
def test_an_error_belongs_to_its_request_alone(scripted_lane: LaneTo, code: int, expected: type[WhimbrelError]) -> None:
    def answer(session: Session, asked: Asked) -> None:
        if asked.offset and asked.command == READ:
            session.chunk(asked.cookie, 0x8001, struct.pack(">IH", code, 4) + b"why!")
        elif asked.offset:
            session.simple(asked.cookie, code)
        else:
            session.data(asked.cookie, 0, DATA)

    lane = scripted_lane(each(answer))
    buffer = bytearray(8192)
    refused = lane.submit_read(8192, memoryview(bytearray(8192)))
    written = lane.submit_write(8192, memoryview(DATA))
    served = lane.submit_read(0, memoryview(buffer))
    for cookie in (refused, written):
        with pytest.raises(WhimbrelError) as caught:
            lane.reap()
        assert type(caught.value) is expected
        assert caught.value.evidence["cookie"] == str(cookie)
        assert "at 8192" in caught.value.message
        assert ("why!" in caught.value.message) == (cookie == refused)
    assert lane.reap().cookie == served
    assert buffer == DATA
    assert not lane.broken
    assert lane.in_flight == 0


def test_an_error_after_some_data_fails_the_read(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.data(asked.cookie, asked.offset, DATA[:512], done=False)
        session.chunk(asked.cookie, 0x8002, struct.pack(">IH", 5, 0) + struct.pack(">Q", 512), done=False)
        session.chunk(asked.cookie, 0)

    with pytest.raises(Unavailable, match="EIO"):
        read(scripted_lane(each(answer)))


def test_silence_is_a_stall_only_while_something_is_in_flight(scripted_lane: LaneTo) -> None:
    lane = scripted_lane(silence)
    lane.patience(0.3)
    time.sleep(0.6)
    before = time.monotonic()
    with pytest.raises(Unavailable, match="stalls") as caught:
        read(lane)
    assert time.monotonic() - before >= 0.3
    assert caught.value.evidence == {"timeout_s": "0.3", "in_flight": "1"}


def test_a_stall_in_the_middle_of_a_payload(scripted_lane: LaneTo) -> None:
    def answer(session: Session, asked: Asked) -> None:
        session.send(struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, asked.cookie, 8 + 8192, asked.offset) + DATA[:100])

    lane = scripted_lane(each(answer))
    lane.patience(0.3)
    with pytest.raises(Unavailable, match="stalls"):
        read(lane)


def test_a_server_that_never_reads_stalls_the_sender(scripted_lane: LaneTo) -> None:
    stop = threading.Event()
    lane = scripted_lane(lambda _: (stop.wait(60), None)[1])
    lane.patience(0.5)

    def fill() -> None:
        for _ in range(64):
            lane.submit_write(0, memoryview(bytes(SIZE)))

    try:
        with pytest.raises(Unavailable, match="stalls"):
            fill()
    finally:
        stop.set()


@pytest.mark.parametrize("said", [0, 7, 16, 100])
def test_death_with_requests_in_flight(scripted_lane: LaneTo, said: int) -> None:
    def script(session: Session) -> None:
        asked = session.request()
        whole = struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, asked.cookie, 8 + 8192, asked.offset) + DATA
        session.send(whole[:said])
        raise EOFError

    with pytest.raises(Unavailable, match=r"closed the connection|reset"):
        read(scripted_lane(script))


@pytest.mark.parametrize("offer", [None, PLAIN], ids=["structured", "simple"])
def test_both_pipes_full(scripted_lane: LaneTo, offer: Offer | None) -> None:
    """A server that answers each request before it reads the next one, with much more than any pipe holds."""

    def answer(session: Session, asked: Asked) -> None:
        if asked.command == WRITE:
            assert asked.data == bytes(SIZE)
            session.simple(asked.cookie)
        elif offer is PLAIN:
            session.simple(asked.cookie, 0, b"r" * SIZE)
        else:
            session.data(asked.cookie, 0, b"r" * SIZE)

    lane = scripted_lane(each(answer), offer=offer)
    zeros = memoryview(bytes(SIZE))
    buffers = [bytearray(SIZE) for _ in range(40)]
    for buffer in buffers:
        lane.submit_read(0, memoryview(buffer))
        lane.submit_write(0, zeros)
    assert lane.in_flight == 80
    assert {lane.reap().cookie for _ in range(80)} == set(range(1, 81))
    assert all(buffer == b"r" * SIZE for buffer in buffers)


def test_requests_above_the_maximum_payload_are_split(scripted_lane: LaneTo) -> None:
    lengths: list[int] = []

    def answer(session: Session, asked: Asked) -> None:
        lengths.append(asked.length)
        if asked.command == READ:
            session.data(asked.cookie, asked.offset, bytes([asked.offset // 4096]) * asked.length)
        else:
            session.simple(asked.cookie, 28 if asked.data[:1] == b"!" and asked.offset == 4096 else 0)

    lane = scripted_lane(each(answer), offer=Offer(blocks=(512, 4096, 4096)))
    assert read(lane, 0, 10240) == b"\0" * 4096 + b"\1" * 4096 + b"\2" * 2048
    assert lengths == [4096, 4096, 2048]
    cookie = lane.submit_write(0, memoryview(bytes(10240)))
    assert lane.reap().cookie == cookie
    cookie = lane.submit_write(0, memoryview(b"!" * 10240))
    with pytest.raises(QuotaExceeded) as caught:
        lane.reap()
    assert caught.value.evidence["cookie"] == str(cookie)
    assert lane.in_flight == 0
    assert read(lane, 0, 512) == bytes(512)


@pytest.mark.parametrize(("may_punch", "flags"), [(True, 0), (False, 2)])
def test_zeroing_keeps_the_space_only_where_told(scripted_lane: LaneTo, may_punch: bool, flags: int) -> None:
    seen: list[Asked] = []

    def answer(session: Session, asked: Asked) -> None:
        seen.append(asked)
        session.simple(asked.cookie)

    lane = scripted_lane(each(answer), offer=Offer(size=1 << 40))
    lane.submit_zero(4096, 300 << 20, may_punch=may_punch)
    assert lane.reap().length == 300 << 20
    assert {(one.command, one.flags) for one in seen} == {(ZEROES, flags)}
    assert sum(one.length for one in seen) == 300 << 20
    assert max(one.length for one in seen) <= 128 << 20


def test_zeroing_without_the_command_writes_zeros(scripted_lane: LaneTo) -> None:
    disk = bytearray(b"\xff" * (5 << 20))

    def answer(session: Session, asked: Asked) -> None:
        assert asked.command == WRITE
        disk[asked.offset : asked.offset + asked.length] = asked.data
        session.simple(asked.cookie)

    lane = scripted_lane(each(answer), offer=Offer(size=5 << 20, flags=HAS_FLAGS))
    lane.submit_zero(4096, 3 << 20)
    completion = lane.reap()
    assert (completion.operation, completion.offset, completion.length) == ("zero", 4096, 3 << 20)
    assert disk == b"\xff" * 4096 + bytes(3 << 20) + b"\xff" * ((2 << 20) - 4096)


def test_requests_outside_the_device_or_its_blocks_are_ours_to_correct(scripted_lane: LaneTo) -> None:
    lane = scripted_lane(silence, offer=Offer(blocks=(4096, 4096, 1 << 20)))
    for offset, length in ((0, 0), (-4096, 4096), (SIZE, 4096), (512, 4096), (0, 512)):
        with pytest.raises(ValueError):
            lane.submit_read(offset, memoryview(bytearray(length)))
        with pytest.raises(ValueError):
            lane.submit_zero(offset, length)
    with pytest.raises(ValueError, match="nothing is in flight"):
        lane.reap()
