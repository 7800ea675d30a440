"""Opening over ssh: an error without ssh's words is asked for again, one with them is believed at once."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from drivers.libvirt import LibvirtCloud, connection
from whimbrel.errors import AuthFailed, Unavailable

SILENT = "Cannot recv data: Value too large for defined data type"
TOLD = "Cannot recv data: Host key verification failed.: Connection reset by peer"


def _refusals(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[str]:
    """Let every open fail with the next of ``texts``; what was asked for, by address."""
    asked: list[str] = []

    def open_auth(uri: str, auth: Any, flags: int) -> Any:
        del auth, flags
        asked.append(uri)
        raise libvirt.libvirtError(texts[min(len(asked), len(texts)) - 1])

    monkeypatch.setattr(libvirt, "openAuth", open_auth)
    monkeypatch.setattr(connection, "SSH_PAUSE_S", 0.0)
    return asked


def test_a_break_without_a_word_is_asked_again_until_ssh_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _refusals(monkeypatch, [SILENT, SILENT, TOLD])
    with pytest.raises(AuthFailed) as refused:
        LibvirtCloud("far", uri="qemu+ssh://root@far.example/system").compute.inventory()
    assert len(asked) == 3
    assert "known_hosts" in refused.value.action


def test_a_host_that_never_says_why_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _refusals(monkeypatch, [SILENT])
    with pytest.raises(Unavailable):
        LibvirtCloud("far", uri="qemu+ssh://root@far.example/system").compute.inventory()
    assert len(asked) == connection.SSH_ATTEMPTS


def test_other_transports_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _refusals(monkeypatch, [SILENT])
    with pytest.raises(Unavailable):
        LibvirtCloud("far", uri="qemu+tls://far.example/system").compute.inventory()
    assert len(asked) == 1
