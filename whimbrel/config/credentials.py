"""Secrets by reference: files name where a secret is; it is read when it is used and never shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from whimbrel.config.schema import YamlModel
from whimbrel.errors import AuthFailed

MAX_SECRET_BYTES = 64 << 10


class KeyringEntry(YamlModel):
    """An entry of the desktop's or server's keyring."""

    service: str = Field(min_length=1)
    user: str = Field(min_length=1)


class SecretRef(YamlModel):
    """Where a secret is: exactly one of an environment variable, a file, a keyring entry."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of an environment variable of the worker."""
    file: str | None = Field(default=None, min_length=1)
    """Path of a file that only its owner can read; a relative one starts at whimbrel.yaml's directory."""
    keyring: KeyringEntry | None = None
    """Entry of the keyring."""

    @model_validator(mode="after")
    def _one(self) -> SecretRef:
        if sum(place is not None for place in (self.env, self.file, self.keyring)) != 1:
            raise ValueError("needs exactly one of env, file, keyring")
        return self

    def describe(self) -> str:
        """Where the secret is, for messages."""
        if self.env is not None:
            return f"environment variable {self.env}"
        if self.file is not None:
            return f"file {self.file}"
        assert self.keyring is not None
        return f"keyring entry {self.keyring.service}/{self.keyring.user}"


def resolve(ref: SecretRef, *, environ: Mapping[str, str] | None = None) -> SecretStr:
    """The secret itself, read now; its ``repr`` hides it. Raises AuthFailed saying what is wrong with the place."""
    if ref.env is not None:
        value = (os.environ if environ is None else environ).get(ref.env, "")
    elif ref.file is not None:
        value = _from_file(Path(ref.file).expanduser())
    else:
        assert ref.keyring is not None
        value = _from_keyring(ref.keyring)
    if not value:
        raise AuthFailed(
            f"{ref.describe()} holds no secret", action=f"put the secret into the {ref.describe()} of the worker"
        )
    return SecretStr(value)


def _from_file(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AuthFailed(
            f"secret file {path} cannot be read: {error.strerror}", action="make the file, readable by the worker only"
        ) from error
    try:
        _refuse_exposed(path, os.fstat(fd))
        raw = os.read(fd, MAX_SECRET_BYTES + 1)
    finally:
        os.close(fd)
    if len(raw) > MAX_SECRET_BYTES:
        raise AuthFailed(f"secret file {path} is larger than {MAX_SECRET_BYTES >> 10} KiB", action="check the path")
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise AuthFailed(f"secret file {path} is not UTF-8 text", action="check the path") from None


def _refuse_exposed(path: Path, status: os.stat_result) -> None:
    """Nobody but the owner may read or write it; root may share a file read-only with a group, as services do."""
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise AuthFailed(f"secret file {path} is no regular file", action="name a file")
    if status.st_uid not in {0, os.geteuid()}:
        raise AuthFailed(f"secret file {path} belongs to uid {status.st_uid}", action=f"chown it to uid {os.geteuid()}")
    allowed = 0o740 if status.st_uid == 0 else 0o700
    if mode & ~allowed & 0o777:
        who = "everybody" if mode & 0o007 else "its group"
        raise AuthFailed(f"secret file {path} is open to {who} (mode {mode:04o})", action=f"chmod 600 {path}")


def _from_keyring(entry: KeyringEntry) -> str:
    import keyring
    import keyring.errors

    try:
        return keyring.get_password(entry.service, entry.user) or ""
    except keyring.errors.KeyringError as error:
        raise AuthFailed(
            f"the keyring cannot be read: {type(error).__name__}", action="unlock it, or use env: or file: instead"
        ) from error
