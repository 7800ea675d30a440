"""What an NBD server's refusals, lies and silences mean in Whimbrel's error taxonomy: one table for each kind.

A server that breaks the protocol is reported as ``Unavailable``: nothing that came over this connection can be
trusted any more, but a new connection (or a restarted server) may well be sound, so the retry is worth it. The
evidence ``protocol`` says which rule was broken.
"""

from __future__ import annotations

from typing import Final, TypeVar

from whimbrel.errors import (
    MAX_EVIDENCE_CHARS,
    AuthFailed,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)
from whimbrel.nbd import protocol as p

Fault = TypeVar("Fault", bound=WhimbrelError)

# "Error values" of the protocol document.
REQUEST_FAULTS: Final[dict[int, tuple[type[WhimbrelError], str, str]]] = {
    p.EPERM: (PermissionDenied, "EPERM", "export the disk writable, or open it for reading only"),
    p.EIO: (Unavailable, "EIO", "look at the server's log and at the health of its storage"),
    p.ENOMEM: (Unavailable, "ENOMEM", "free memory on the server's host"),
    p.EINVAL: (Unsupported, "EINVAL", "the server does not take this request: look at its log"),
    p.ENOSPC: (QuotaExceeded, "ENOSPC", "free space on the storage behind the export, then resume"),
    p.EOVERFLOW: (Unsupported, "EOVERFLOW", "the server cannot answer a request of this length"),
    p.ENOTSUP: (Unsupported, "ENOTSUP", "the server does not know this request: use another server or mode"),
    p.ESHUTDOWN: (Unavailable, "ESHUTDOWN", "the server is shutting down: start it again"),
}

# "Option reply types" of the protocol document.
OPTION_FAULTS: Final[dict[int, tuple[type[WhimbrelError], str, str, str]]] = {
    p.REP_ERR_UNSUP: (Unsupported, "UNSUP", "does not know the option", "use a newer NBD server"),
    p.REP_ERR_POLICY: (PermissionDenied, "POLICY", "forbids it by policy", "allow this client in the server's set-up"),
    p.REP_ERR_INVALID: (Unsupported, "INVALID", "calls the option invalid", "look at the server's log"),
    p.REP_ERR_PLATFORM: (Unsupported, "PLATFORM", "cannot do it on its platform", "use another NBD server"),
    p.REP_ERR_TLS_REQD: (AuthFailed, "TLS_REQD", "insists on TLS", "give the endpoint TLS certificates"),
    p.REP_ERR_UNKNOWN: (NotFound, "UNKNOWN", "has no such export", "check the export's name"),
    p.REP_ERR_SHUTDOWN: (Unavailable, "SHUTDOWN", "is shutting down", "start the server again"),
    p.REP_ERR_BLOCK_SIZE_REQD: (Unsupported, "BLOCK_SIZE_REQD", "wants other block sizes", "use another NBD server"),
    p.REP_ERR_TOO_BIG: (Unsupported, "TOO_BIG", "finds the option too long", "shorten the export's name"),
}


def request_fault(address: str, what: str, code: int, text: str = "", **evidence: object) -> WhimbrelError:
    """The error for a request that the server answered with NBD error value ``code``; ``text`` is the server's own."""
    kind, name, action = REQUEST_FAULTS.get(code, (Unavailable, f"error {code}", "look at the server's log"))
    said = f" ({text})" if text else ""
    fault = kind(f"NBD server {address} failed to {what}: {name}{said}", action=action)
    return _with(fault, nbd_error=name, **evidence)


def option_fault(address: str, what: str, reply: int, text: str = "", **evidence: object) -> WhimbrelError:
    """The error for an option that the server refused with the reply type ``reply`` while we wanted to ``what``."""
    kind, name, means, action = OPTION_FAULTS.get(
        reply, (Unsupported, f"{reply:#x}", "refuses for a reason unknown to us", "look at the server's log")
    )
    said = f" ({text})" if text else ""
    message = f"cannot {what}: NBD server {address} {means}{said}"
    return _with(kind(message, action=action), nbd_reply=f"NBD_REP_ERR_{name}", **evidence)


def violation(address: str, rule: str, **evidence: object) -> Unavailable:
    """The error for a server that broke ``rule`` of the protocol; the connection must not be used again."""
    fault = Unavailable(
        f"NBD server {address} breaks the protocol: {rule}",
        action="nothing yet: a new connection is tried; if it goes on, restart or replace the NBD server",
    )
    return _with(fault, protocol=rule, **evidence)


def _with(fault: Fault, **evidence: object) -> Fault:
    fault.evidence.update({key: str(value)[:MAX_EVIDENCE_CHARS] for key, value in evidence.items()})
    return fault
