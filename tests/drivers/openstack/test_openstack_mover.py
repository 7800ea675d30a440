"""What a mover server is told and what it says, without one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openstack.block_storage.v3.volume import Volume
from openstack.test import fakes

from drivers.openstack import marks
from drivers.openstack.connection import ASK_AGAIN_S, settled
from drivers.openstack.mover import MoverSettings, ServedVolume, certificate_on, endpoint, user_data
from whimbrel.errors import AuthFailed, GuestUnbootable, NotReady

CERTIFICATE = ["-----BEGIN CERTIFICATE-----", "MIIBqDCC", "Aw==", "-----END CERTIFICATE-----"]
READY = [*(f"WHIMBREL-MOVER CERT {line}" for line in CERTIFICATE), "WHIMBREL-MOVER READY disks=1 port=10809"]
OTHER = [line.replace("MIIBqDCC", "before") for line in READY]


def settings(directory: Path) -> MoverSettings:
    return MoverSettings(image="mover", flavor="tiny", network="wire", tls_dir=str(directory))


def console(*lines: str) -> str:
    return "\r\n".join(["SeaBIOS", *lines, ""])


def test_the_certificate_is_read_once_all_is_served() -> None:
    assert certificate_on(console(*READY)) == "".join(f"{line}\n" for line in CERTIFICATE)
    for count in range(len(READY)):
        assert certificate_on(console(*READY[:count])) is None


def test_after_a_restart_the_new_certificate_counts() -> None:
    assert certificate_on(console(*OTHER, *READY)) == certificate_on(console(*READY))
    assert certificate_on(console(*READY, "WHIMBREL-MOVER ENDED killed")) == certificate_on(console(*READY))
    assert certificate_on(console(*READY, *OTHER[:4])) is None


@pytest.mark.parametrize("word", ["FAILED", "ENDED"])
def test_a_server_that_cannot_serve_says_why(word: str) -> None:
    with pytest.raises(GuestUnbootable, match="volume 1 is not attached"):
        certificate_on(console(f"WHIMBREL-MOVER {word} volume 1 is not attached"))


def test_user_data_names_disks_address_and_whom_to_trust(tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").write_text("-----BEGIN CERTIFICATE-----\nCA\n-----END CERTIFICATE-----\n")
    served = [ServedVolume("v1", 2 << 20, writable=True), ServedVolume("v2", 5, writable=False)]
    text = user_data(settings(tmp_path), served, address="10.0.0.7", cidr="10.0.0.0/22", gateway=None, mtu=1450)
    lines = base64.b64decode(text).decode().splitlines()
    assert lines == [
        "name whimbrel-mover",
        "address 10.0.0.7/22",
        "mtu 1450",
        "port 10809",
        "disk v1 2097152 write",
        "disk v2 5 read",
        "ca -----BEGIN CERTIFICATE-----",
        "ca CA",
        "ca -----END CERTIFICATE-----",
    ]
    again = user_data(settings(tmp_path), [], address="10.0.0.7", cidr="10.0.0.0/22", gateway="10.0.0.1", mtu=1450)
    assert b"gateway 10.0.0.1\n" in base64.b64decode(again)


def test_without_the_clients_authority_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(AuthFailed, match=r"ca-cert\.pem") as caught:
        user_data(settings(tmp_path), [], address="10.0.0.7", cidr="10.0.0.0/22", gateway=None, mtu=1500)
    assert "tls_dir" in str(caught.value.action)


def test_an_endpoint_trusts_that_one_certificate(tmp_path: Path) -> None:
    found = endpoint(settings(tmp_path), ServedVolume("v1", 9, writable=True), address="10.0.0.7", certificate="PEM")
    assert (found.host, found.port, found.export, found.writable) == ("10.0.0.7", 10809, "v1", True)
    assert found.tls is not None
    assert (found.tls.server_certificate, found.tls.directory) == ("PEM", str(tmp_path))


@given(size_bytes=st.integers(min_value=1, max_value=1 << 45), grown=st.integers(min_value=0, max_value=3))
def test_a_volume_is_as_long_as_we_made_it_until_it_grows(size_bytes: int, grown: int) -> None:
    gib = marks.whole_gib(size_bytes) + grown
    volume = fakes.generate_fake_resource(Volume, size=gib, metadata={marks.SIZE: str(size_bytes)})
    assert marks.size_of(volume) == (gib << 30 if grown else size_bytes)
    assert marks.size_of(fakes.generate_fake_resource(Volume, size=gib, metadata={})) == gib << 30


def test_what_is_not_there_yet_is_asked_again_soon() -> None:
    """In an outage a backoff would be waited for by a guest."""
    with pytest.raises(NotReady) as caught:
        settled(lambda: None, "it starts", patience_s=0.0)
    assert caught.value.retry_after_s == ASK_AGAIN_S <= 2.0
