"""The secret in the URL. It stands in files of mode 0600 alone, and in the header of the image that reads from here."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from whimbrel.errors import InvalidPlan
from whimbrel.stream.chunkmap import sync_directory

TOKEN_BYTES: Final = 32
_GOOD: Final = re.compile(r"[A-Za-z0-9_-]{32,128}")


def ensure_token(path: Path) -> str:
    """The token in ``path``, made if the file is not there. Raises InvalidPlan as ``read_token``, and OSError."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    if not path.exists():
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, secrets.token_urlsafe(TOKEN_BYTES).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(fresh, path)  # unlike rename, never replaces the token that another process made meanwhile
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        sync_directory(path.parent)
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in ``path``. Raises InvalidPlan if there is none, it is weak, or others may read the file."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as failed:
        raise InvalidPlan(f"the token's file {path} cannot be read: {type(failed).__name__}", cause=failed) from failed
    if stat.S_IMODE(mode) & 0o077:
        raise InvalidPlan(f"others may read the token's file {path}", action=f"chmod 600 {path}")
    if not _GOOD.fullmatch(text):
        raise InvalidPlan(f"{path} holds no token", action="remove the file, a new token is made")
    return text


def url(address: str, port: int, token_path: Path) -> str:
    """The URL for ``rbd migration prepare``; a secret. Raises InvalidPlan."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/{read_token(token_path)}"
