"""Secrets: read at use from where the reference points, refused where others could read them, never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whimbrel.config.credentials import KeyringEntry, SecretRef, resolve
from whimbrel.errors import AuthFailed

SECRET = "s3cr3t-value"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def test_from_the_environment_at_use() -> None:
    ref = SecretRef(env="W_SECRET")
    assert resolve(ref, environ={"W_SECRET": SECRET}).get_secret_value() == SECRET
    assert SECRET not in repr(resolve(ref, environ={"W_SECRET": SECRET}))
    with pytest.raises(AuthFailed, match="environment variable W_SECRET holds no secret"):
        resolve(ref, environ={})


def test_from_a_file_without_its_last_newline(secret_file: Path) -> None:
    assert resolve(SecretRef(file=str(secret_file))).get_secret_value() == SECRET
    secret_file.write_text(f" {SECRET} \n\n")
    assert resolve(SecretRef(file=str(secret_file))).get_secret_value() == f" {SECRET} \n"


@pytest.mark.parametrize(
    ("mode", "who"), [(0o604, "everybody"), (0o644, "everybody"), (0o602, "everybody"), (0o620, "its group")]
)
def test_an_exposed_file_is_refused(secret_file: Path, mode: int, who: str) -> None:
    secret_file.chmod(mode)
    with pytest.raises(AuthFailed) as caught:
        resolve(SecretRef(file=str(secret_file)))
    assert caught.value.message == f"secret file {secret_file} is open to {who} (mode {mode:04o})"
    assert caught.value.action == f"chmod 600 {secret_file}"


def test_a_group_may_read_only_what_root_shares(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret_file.chmod(0o640)
    if os.geteuid() == 0:
        assert resolve(SecretRef(file=str(secret_file))).get_secret_value() == SECRET
        os.chown(secret_file, 12345, 12345)
        with pytest.raises(AuthFailed, match="belongs to uid 12345"):
            resolve(SecretRef(file=str(secret_file)))
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(AuthFailed, match="is open to its group"):
        resolve(SecretRef(file=str(secret_file)))


def test_a_file_that_is_none(tmp_path: Path, secret_file: Path) -> None:
    with pytest.raises(AuthFailed, match="cannot be read: No such file"):
        resolve(SecretRef(file=str(tmp_path / "absent")))
    with pytest.raises(AuthFailed, match="is no regular file"):
        resolve(SecretRef(file=str(tmp_path)))
    secret_file.write_bytes(b"")
    with pytest.raises(AuthFailed, match="holds no secret"):
        resolve(SecretRef(file=str(secret_file)))
    secret_file.write_bytes(b"x" * 70_000)
    with pytest.raises(AuthFailed, match="larger than 64 KiB"):
        resolve(SecretRef(file=str(secret_file)))
    secret_file.write_bytes(b"\xff\xfe")
    with pytest.raises(AuthFailed, match="is not UTF-8 text"):
        resolve(SecretRef(file=str(secret_file)))


def test_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring
    from keyring.backend import KeyringBackend
    from keyring.errors import KeyringLocked

    class OneEntry(KeyringBackend):
        priority = 1
        locked = False

        def get_password(self, service: str, username: str) -> str | None:
            if self.locked:
                raise KeyringLocked(SECRET)
            return SECRET if (service, username) == ("libvirt", "u") else None

        def set_password(self, service: str, username: str, password: str) -> None:
            raise NotImplementedError

        def delete_password(self, service: str, username: str) -> None:
            raise NotImplementedError

    backend = OneEntry()  # type: ignore[no-untyped-call]
    before = keyring.get_keyring()
    keyring.set_keyring(backend)
    try:
        good = SecretRef(keyring=KeyringEntry(service="libvirt", user="u"))
        assert resolve(good).get_secret_value() == SECRET
        with pytest.raises(AuthFailed, match="keyring entry libvirt/x holds no secret"):
            resolve(SecretRef(keyring=KeyringEntry(service="libvirt", user="x")))
        backend.locked = True
        with pytest.raises(AuthFailed, match="the keyring cannot be read: KeyringLocked") as caught:
            resolve(good)
        assert SECRET not in str(caught.value)
    finally:
        keyring.set_keyring(before)
