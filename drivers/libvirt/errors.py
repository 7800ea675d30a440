"""What libvirt's errors mean here: one table from its codes and words to the taxonomy.

libvirt reports much as one of a few wide codes (``internal error``, ``system error``, ``operation failed``) with the
reason in the text only, so words are looked at first. The words are those of libvirt 9 and QEMU 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from whimbrel.errors import (
    AuthFailed,
    BaseLost,
    Conflict,
    InvalidPlan,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)

BY_WORDS: tuple[tuple[re.Pattern[str], type[WhimbrelError]], ...] = tuple(
    (re.compile(words, re.IGNORECASE), kind)
    for words, kind in (
        # ssh tells of refused keys through a connection that breaks, so this comes before what breaks connections.
        (r"authentication (failed|unavailable)|permission denied \(publickey|host key verification", AuthFailed),
        # libvirt reads at most 1 KiB of what ssh says and reports EOVERFLOW for more. The one long speech of ssh before
        # a connection stands is its banner about a host whose key has changed.
        (r"recv data: value too large for defined data type", AuthFailed),
        (r"no space left|disk quota exceeded|not enough free space|file too large", QuotaExceeded),
        (r"client socket is closed|connection (refused|reset|timed out)|broken pipe|no route to host", Unavailable),
        (r"end of file while reading|keepalive|cannot (recv|write|read) data|network is unreachable", Unavailable),
        (r"unable to resolve|failed to connect|connection closed|no connection driver", Unavailable),
        (r"failed to get (shared )?\"\w+\" lock|another process using the image|already in use by", Conflict),
        (r"permission denied|read.only access|forbidden|operation not permitted", PermissionDenied),
        (r"missing or broken bitmap|bitmap '[^']*' .*(inconsistent|not found)|inconsistent.*bitmap", BaseLost),
        (r"already exists|already active", Conflict),
        (r"no such file or directory", NotFound),
        (r"whimbrel-has-taken-this-disk", Conflict),  # somebody starts a VM whose disks were handed over
        (r"failed to find an available port", NotReady),  # of a display: another program took it just before QEMU
        # QEMU ended while it started and gave no reason, which would follow: somebody killed it.
        (r"unexpectedly closed the monitor$", NotReady),
        (r"has asynchronous jobs running", NotReady),  # a storage pool, while somebody makes or deletes a volume
        (r"cannot allocate memory", QuotaExceeded),
    )
)

ACTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(words, re.IGNORECASE), action)
    for words, action in (
        (
            r"host key verification|no matching host key|recv data: value too large for defined data type",
            "compare the host's key with the one its owner tells, then put it into known_hosts of the worker's user",
        ),
        (
            r"permission denied \(publickey|too many authentication failures",
            "put the worker user's public key into authorized_keys on that host; it must work without a passphrase",
        ),
        (
            r"whimbrel-has-taken-this-disk",
            "its disks belong to the migration that the path names: confirm or roll back that one",
        ),
        (
            r"certificate|pki|tls (handshake|packet)",
            "check the client certificate, its CA and the host name in the server's certificate (virt-pki-validate)",
        ),
    )
)
"""What an operator can do about failures whose class alone does not tell, by libvirt's or ssh's words."""

BY_CODE: dict[int, type[WhimbrelError]] = {
    libvirt.VIR_ERR_NO_CONNECT: Unavailable,
    libvirt.VIR_ERR_INVALID_CONN: Unavailable,
    libvirt.VIR_ERR_RPC: Unavailable,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: Unavailable,
    libvirt.VIR_ERR_OPERATION_ABORTED: Unavailable,
    libvirt.VIR_ERR_AUTH_FAILED: AuthFailed,
    libvirt.VIR_ERR_AUTH_CANCELLED: AuthFailed,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: AuthFailed,
    libvirt.VIR_ERR_OPERATION_DENIED: PermissionDenied,
    libvirt.VIR_ERR_ACCESS_DENIED: PermissionDenied,
    libvirt.VIR_ERR_NO_DOMAIN: NotFound,
    libvirt.VIR_ERR_NO_NETWORK: NotFound,
    libvirt.VIR_ERR_NO_STORAGE_POOL: NotFound,
    libvirt.VIR_ERR_NO_STORAGE_VOL: NotFound,
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT: BaseLost,
    libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT: BaseLost,
    libvirt.VIR_ERR_DOM_EXIST: Conflict,
    libvirt.VIR_ERR_STORAGE_VOL_EXIST: Conflict,
    libvirt.VIR_ERR_RESOURCE_BUSY: Conflict,
    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE: Conflict,
    libvirt.VIR_ERR_OPERATION_INVALID: Conflict,
    libvirt.VIR_ERR_NO_SUPPORT: Unsupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: NotReady,
    libvirt.VIR_ERR_AGENT_UNSYNCED: NotReady,
    libvirt.VIR_ERR_XML_ERROR: InvalidPlan,
    libvirt.VIR_ERR_XML_DETAIL: InvalidPlan,
    libvirt.VIR_ERR_NO_MEMORY: QuotaExceeded,
}
"""Codes that mean the same wherever they come from."""


def kind_of(code: int, text: str) -> type[WhimbrelError]:
    """The class of the taxonomy for a libvirt error; the base class (internal) for one that the table lacks."""
    if code in {libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT}:
        return BaseLost
    for words, kind in BY_WORDS:
        if words.search(text):
            return kind
    return BY_CODE.get(code, WhimbrelError)


def is_dead_connection(error: libvirt.libvirtError) -> bool:
    """Whether the connection, and every object that came from it, can no longer be used."""
    text = str(error)
    if re.search(
        r"client socket is closed|end of file while reading|keepalive|cannot (recv|write) data", text, re.IGNORECASE
    ):
        return True
    # The kernel's EPIPE or ECONNRESET reported by the RPC layer.
    code, origin = error.get_error_code(), error.get_error_domain()
    return bool(code == libvirt.VIR_ERR_SYSTEM_ERROR and origin == libvirt.VIR_FROM_RPC)


def translate(error: libvirt.libvirtError, doing: str, **evidence: str) -> WhimbrelError:
    """The error to raise in place of ``error``, met while ``doing`` (a gerund phrase: "starting vm1")."""
    text = " ".join(str(error).split())
    code = error.get_error_code()
    kind = kind_of(code if code is not None else -1, text)
    if is_dead_connection(error) and kind is not AuthFailed:
        kind = Unavailable
    action = next((action for words, action in ACTIONS if words.search(text)), None)
    return kind(f"{doing} failed: {text}", action=action, cause=error, libvirt_code=code, **evidence)


@contextmanager
def translated(doing: str, **evidence: str) -> Iterator[None]:
    """Raise what libvirt raises inside as an error of the taxonomy."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, doing, **evidence) from error
