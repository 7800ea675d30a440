"""Who may use an image: a session's key in its metadata, and the lock by which a late client is shut out.

A session begins with its key in the image's metadata and ends when the key is gone and every client that still holds
the exclusive lock was shut out of the cluster (Ceph's blocklist): whatever such a client sends afterwards fails.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from drivers.ceph import binding
from drivers.ceph.errors import translated
from whimbrel.errors import Conflict, Unsupported

KEY = "whimbrel.session"
CLIENT = "whimbrel.client."
"""Followed by the address of a client of a session."""
ENDED = "ended "
MARK = "1"
"""Value of keys that only have to be there; the binding leaves out keys with an empty value."""
POINT = "whimbrel.point."
"""Followed by the key of a point in time that is open: its endpoints only read, and the lock is not touched."""


def of(image: Any) -> str | None:
    """Key of the session that is open on the image."""
    rbd = binding.load().rbd
    try:
        return str(image.metadata_get(KEY))
    except KeyError:
        return None
    except rbd.ImageNotFound:  # other versions of the binding say this of a missing key
        return None


def begin(image: Any, key: str, name: str) -> None:
    """Open the session; one of the same key goes on. Raises Conflict, Unsupported (no exclusive lock)."""
    rbd = binding.load().rbd
    with translated(f"opening a session on {name}"):
        held = of(image)
        if held == ENDED + key:  # an attempt to close it was killed on the way
            end(image, key, name)
            held = None
        if held not in {None, key}:
            raise Conflict(f"{name} is open in session {held}", action="end or roll back the migration that has it")
        if not image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            raise Unsupported(
                f"{name} has no exclusive lock, so a late writer could not be shut out",
                action=f"enable it: rbd feature enable {name} exclusive-lock",
            )
        image.metadata_set(KEY, key)


def end(image: Any, key: str, name: str) -> None:
    """Close the session if it is this one, and shut its clients out; never opened is fine."""
    with translated(f"closing the session on {name}"):
        if of(image) not in {key, ENDED + key}:
            return
        # without the key no client can come any more; one that came before has left its name
        image.metadata_set(KEY, ENDED + key)
        shut_out(image)
        for client in _clients(image):
            image.metadata_remove(client)
        image.metadata_remove(KEY)


def check(image: Any, key: str, name: str) -> None:
    """Raises Conflict unless the session is open."""
    with translated(f"looking at {name}"):
        held = of(image)
    if held != key:
        raise Conflict(f"session {key} on {name} was closed", action="nothing: a copy that came too late has ended")


def begin_point(image: Any, key: str) -> datetime:
    """Open the point; when that was, also of one that is open already."""
    now = datetime.now(UTC)
    for known, text in image.metadata_list():
        if str(known) == POINT + key:
            return datetime.fromisoformat(text) if text != MARK else now
    image.metadata_set(POINT + key, now.isoformat())
    return now


def points(image: Any) -> tuple[str, ...]:
    """Keys of the points that are open on the image."""
    return tuple(str(key).removeprefix(POINT) for key, _ in image.metadata_list() if str(key).startswith(POINT))


def check_point(image: Any, key: str, name: str) -> None:
    """Raises Conflict unless the point is open."""
    with translated(f"looking at {name}"):
        known = points(image)
    if key not in known:
        raise Conflict(f"point {key} on {name} was closed", action="nothing: a copy that came too late has ended")


def take(image: Any, address: str, name: str) -> None:
    """Become the only writer; a client of ours that is there already, late or dead, is shut out.

    Raises Conflict when somebody else, a VM for instance, has the lock: that one is left alone.
    """
    rbd = binding.load().rbd
    with translated(f"taking the lock of {name}"):
        shut_out(image)
        # told before it is taken: a lock of ours without a name could not be broken
        image.metadata_set(CLIENT + plain(address), MARK)
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)


def leave(image: Any, address: str) -> None:
    """Take the client's name away again, with its lock. Raises what librbd raises once the client was shut out."""
    if image.is_exclusive_lock_owner():
        image.lock_release()
    if CLIENT + plain(address) in _clients(image):
        image.metadata_remove(CLIENT + plain(address))


def shut_out(image: Any) -> None:
    """Break the lock of a client of ours, and bar that client from the cluster."""
    rbd = binding.load().rbd
    if image.is_exclusive_lock_owner():
        return
    ours = {client.removeprefix(CLIENT) for client in _clients(image)}
    try:
        for owner in list(image.lock_get_owners()):
            if plain(owner["owner"]) in ours:
                image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner["owner"])
    except rbd.ImageNotFound:  # nobody has it, or it was let go by itself
        return


def plain(address: str) -> str:
    """A client's address without the protocol that some of Ceph's answers put before it."""
    return re.sub(r"^(any|v\d+):", "", address)


def _clients(image: Any) -> list[str]:
    return [str(key) for key, _ in image.metadata_list() if str(key).startswith(CLIENT)]
