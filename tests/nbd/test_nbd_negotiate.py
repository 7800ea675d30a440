"""The handshake against servers that refuse, lie, stall or die in it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nbd.conftest import Serve
from tests.nbd.scripted_server import ACK, ALL_FLAGS, ERROR, HAS_FLAGS, INFO, META, READ_ONLY, Offer, Session
from whimbrel.errors import (
    AuthFailed,
    InvalidPlan,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
    WhimbrelError,
)
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths
from whimbrel.nbd import list_exports, open_nbd


def test_what_the_server_says_becomes_the_device(serve: Serve) -> None:
    device = open_nbd(serve(offer=Offer(size=3 << 20, blocks=(512, 4096, 1 << 20))))
    assert (device.size_bytes, device.block_bytes, device.read_only, device.multi_conn) == (3 << 20, 512, False, True)
    device.close()


def test_without_block_sizes_any_byte_can_be_addressed(serve: Serve) -> None:
    device = open_nbd(serve(offer=Offer(size=12345, structured=False, flags=HAS_FLAGS), writable=False))
    assert (device.size_bytes, device.block_bytes, device.read_only, device.multi_conn) == (12345, 1, True, False)
    device.close()


def test_a_read_only_export_cannot_be_opened_for_writing(serve: Serve) -> None:
    with pytest.raises(PermissionDenied, match="read-only"):
        open_nbd(serve(offer=Offer(flags=ALL_FLAGS | READ_ONLY)))


def test_an_unknown_export_names_those_there_are(serve: Serve) -> None:
    endpoint = serve(offer=Offer(exports=("vda", "vdb")), export="vdx")
    with pytest.raises(NotFound) as caught:
        open_nbd(endpoint)
    assert caught.value.evidence["exports"] == "'vda', 'vdb'"
    assert "'vdx'" in caught.value.message
    assert "vda" in caught.value.action


def test_an_unknown_export_where_the_server_does_not_list(serve: Serve) -> None:
    with pytest.raises(NotFound) as caught:
        open_nbd(serve(offer=Offer(exports=("secret",), refuse={3: ERROR | 2}), export="vdx"))
    assert "exports" not in caught.value.evidence


def test_listing(serve: Serve) -> None:
    names = ("", "vda", "Größe")
    assert list_exports(serve(offer=Offer(exports=names))) == list(names)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (1, Unsupported),
        (2, PermissionDenied),
        (3, Unsupported),
        (4, Unsupported),
        (5, AuthFailed),
        (6, NotFound),
        (7, Unavailable),
        (8, Unsupported),
        (9, Unsupported),
        (77, Unsupported),
    ],
)
def test_each_refusal_of_go_has_its_class(serve: Serve, reply: int, expected: type[WhimbrelError]) -> None:
    with pytest.raises(WhimbrelError) as caught:
        open_nbd(serve(offer=Offer(refuse={7: ERROR | reply})))
    assert type(caught.value) is expected
    assert "s0" in caught.value.message
    assert caught.value.action != expected.default_action


def test_a_server_that_wants_tls_first(serve: Serve) -> None:
    with pytest.raises(AuthFailed, match="insists on TLS"):
        open_nbd(serve(offer=Offer(refuse={8: ERROR | 5})))


def test_structured_replies_and_contexts_may_be_missing(serve: Serve) -> None:
    for refuse in ({8: ERROR | 1}, {8: ERROR | 2}, {10: ERROR | 1}):
        device = open_nbd(serve(offer=Offer(refuse=refuse)))
        assert [(e.start, e.length, e.zero) for e in device.extents()] == [(0, 1 << 20, False)]
        device.close()


@pytest.mark.parametrize("size", [0, 1000])
def test_a_size_that_is_no_disk(serve: Serve, size: int) -> None:
    with pytest.raises(Unsupported, match=f"size of {size}"):
        open_nbd(serve(offer=Offer(size=size, blocks=(512, 512, 1 << 20))))


def _lie(option: int, reply: int, body: bytes, **more: int) -> Callable[[Session], None]:
    """Answer the first request for ``option`` in this way, all before honestly."""

    def first(session: Session) -> None:
        session.greet()
        while True:
            asked, _ = session.option()
            if asked == option:
                session.answer(more.get("instead", option), reply, body, more.get("magic", 0x3E889045565A9))
                session.silent()
                raise EOFError
            session.answer(asked, ACK)

    return first


@pytest.mark.parametrize(
    ("first", "rule"),
    [
        (lambda s: s.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "greeting"),
        (_lie(7, INFO, struct.pack(">HQH", 0, 1 << 63, 1), instead=7), "NBD_OPT_GO"),
        (_lie(7, ACK, b""), "without NBD_INFO_EXPORT"),
        (_lie(7, INFO, struct.pack(">HQ", 0, 1 << 20)), "NBD_INFO_EXPORT of a wrong length"),
        (_lie(7, INFO, struct.pack(">HII", 3, 1, 1)), "NBD_INFO_BLOCK_SIZE of a wrong length"),
        (_lie(7, INFO, struct.pack(">HIII", 3, 0, 512, 512)), "impossible block sizes"),
        (_lie(7, INFO, struct.pack(">HIII", 3, 513, 512, 512)), "impossible block sizes"),
        (_lie(7, INFO, struct.pack(">HIII", 3, 4096, 512, 512)), "impossible block sizes"),
        (_lie(7, ACK, b"", magic=1), "wrong magic"),
        (_lie(7, ACK, b"", instead=8), "another option"),
        (_lie(7, INFO, bytes(70 << 10)), "absurdly long"),
        (_lie(10, META, b"\0\0"), "without an id"),
        (_lie(10, META, b"\0\0\0\1base:other"), "not asked for"),
    ],
)
def test_lies_in_the_handshake(serve: Serve, first: Callable[[Session], None], rule: str) -> None:
    if rule == "NBD_OPT_GO":  # an absurd size must also be granted to be noticed
        first, rule = Session.negotiate, "larger than 2^63"
        endpoint = serve(offer=Offer(size=1 << 63))
    else:
        endpoint = serve(first=first)
    with pytest.raises(Unavailable) as caught:
        open_nbd(endpoint, timeout_s=20)
    assert rule in caught.value.evidence["protocol"]


def test_endless_replies(serve: Serve) -> None:
    def first(session: Session) -> None:
        session.greet()
        session.option()
        session.answer(8, ACK)
        session.option()
        session.answer(10, ACK)
        session.option()
        while True:
            session.answer(7, INFO, struct.pack(">HQH", 0, 1 << 20, 1))

    with pytest.raises(Unavailable, match="endless replies"):
        open_nbd(serve(first=first))


def test_an_oldstyle_server_is_refused(serve: Serve) -> None:
    def first(session: Session) -> None:
        session.send(b"NBDMAGIC" + struct.pack(">QQIH", 0x00420281861253, 1 << 20, 0, 0) + bytes(124))
        session.silent()

    with pytest.raises(Unsupported, match="old handshake"):
        open_nbd(serve(first=first))


@pytest.mark.parametrize("said", [b"", b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\3"])
def test_a_stall_in_the_handshake(serve: Serve, said: bytes) -> None:
    def first(session: Session) -> None:
        session.send(said)
        session.silent()

    before = time.monotonic()
    with pytest.raises(Unavailable, match="stalls"):
        open_nbd(serve(first=first), timeout_s=0.3)
    assert time.monotonic() - before >= 0.3


def test_a_handshake_that_drips_for_ever_ends(serve: Serve) -> None:
    def first(session: Session) -> None:
        session.greet()
        session.option()
        session.send(struct.pack(">QIII", 0x3E889045565A9, 8, ACK, 60000))
        while True:
            session.send(b"x")
            time.sleep(0.05)

    with pytest.raises(Unavailable, match="stalls"):
        open_nbd(serve(first=first), timeout_s=0.4)


@pytest.mark.parametrize("said", [b"", b"NBDMAGICIHAV", b"NBDMAGICIHAVEOPT\0\3"])
def test_death_in_the_handshake(serve: Serve, said: bytes) -> None:
    def first(session: Session) -> None:
        session.send(said)
        raise EOFError

    with pytest.raises(Unavailable, match="closed the connection"):
        open_nbd(serve(first=first))


def test_nobody_there(short_dir: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        open_nbd(NbdEndpoint(unix_path=str(short_dir / "none")))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused"):
            open_nbd(NbdEndpoint(host="127.0.0.1", port=unused.getsockname()[1]))


def test_an_endpoint_needs_one_place() -> None:
    for endpoint in (
        NbdEndpoint(),
        NbdEndpoint(unix_path="/none", host="localhost"),
        NbdEndpoint(unix_path="/" + "x" * 107),
    ):
        with pytest.raises(InvalidPlan):
            open_nbd(endpoint)


def test_a_name_longer_than_the_protocol_allows(serve: Serve) -> None:
    with pytest.raises(InvalidPlan, match="4096"):
        open_nbd(serve(export="x" * 5000))


def test_a_server_without_tls_is_refused_before_any_name_is_sent(serve: Serve, short_dir: Path) -> None:
    endpoint = serve(offer=Offer(refuse={5: ERROR | 1}), export="vda")
    with pytest.raises(AuthFailed, match="cannot load"):
        open_nbd(endpoint.model_copy(update={"tls": TlsPaths(directory=str(short_dir))}))
