"""Tokens that a worker process has: found in its memory, revoked as an administrator does it; and short-lived ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labs.openstack import CloudHandle, OpenStackLab, keystone
from labs.openstack.template import write

FERNET = re.compile(rb"gAAAAA[\w-]{140,400}={0,2}")
"""Version byte and the first bytes of the time, in base64."""


def held(pid: int) -> set[str]:
    """All that look like tokens of Keystone in a process's own memory."""
    found: set[str] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if not rights.startswith("rw") or "[v" in line:
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            try:
                memory.seek(start)
                piece = memory.read(end - start)
            except OSError:
                continue
            found |= {match.decode() for match in FERNET.findall(piece)}
    return found


def revoke(cloud: CloudHandle, pid: int) -> int:
    """Revoke those that are good in this cloud; how many there were."""
    admin: Any = cloud.connect()
    try:
        answers = [admin.identity.delete("/auth/tokens", headers={"X-Subject-Token": token}) for token in held(pid)]
        return sum(answer.status_code == 204 for answer in answers)
    finally:
        admin.close()


def good(cloud: CloudHandle, tokens: set[str]) -> int:
    """How many of them Keystone takes."""
    admin: Any = cloud.connect()
    try:
        answers = [admin.identity.get("/auth/tokens", headers={"X-Subject-Token": token}) for token in tokens]
        return sum(answer.status_code == 200 for answer in answers)
    finally:
        admin.close()


def life_s(cloud: CloudHandle) -> float:
    """For how long a token is good that the cloud gives now."""
    admin: Any = cloud.connect()
    try:
        return float((admin.session.auth.get_access(admin.session).expires - datetime.now(UTC)).total_seconds())
    finally:
        admin.close()


@contextmanager
def short_lived(lab: OpenStackLab, life_s: int) -> Iterator[None]:
    """Inside, every token that the clouds give ends after so many seconds."""
    with ExitStack() as undo:
        for layout in (lab.cloud(name).layout for name in lab.names):
            conf = layout.etc("keystone") / "keystone.conf"
            # each cloud by itself, newest first: what befalls one keeps no other from being as it was
            undo.callback(lab.restart, f"{layout.name}-keystone-api")
            undo.callback(keystone.write_config, layout)
            write(conf, re.sub(r"(?m)^expiration = .*", f"expiration = {life_s}", conf.read_text()))
            lab.restart(f"{layout.name}-keystone-api")
        yield
