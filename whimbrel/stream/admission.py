"""Who may connect to a unix socket."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def admit(path: Path, mode: int, client: tuple[int, int] | None) -> None:
    """Let only ``client`` (user, group) connect to the socket at ``path``, beside this process's own user and root.

    To give a file to another user takes root or CAP_CHOWN; without, the group alone is let in if this process belongs
    to it. Where neither is possible, and without a client, ``mode`` says who may connect. Raises OSError.
    """
    if client is None:
        path.chmod(mode)
        return
    user, group = client
    for owner, narrow in (((user, group), 0o600), ((-1, group), 0o660)):
        try:
            os.chown(path, *owner)
        except PermissionError:
            continue
        path.chmod(narrow)
        return
    log.warning("socket.open_to_all", extra={"path": str(path), "mode": oct(mode), "user": user, "group": group})
    path.chmod(mode)
