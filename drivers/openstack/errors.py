"""What OpenStack's answers mean here: one table from status, words and object states to the taxonomy.

Services differ: a quota is 403 in Nova, 409 in Neutron, 413 in Cinder; a server that is busy is 409 as well as one that
is locked. So words are looked at before numbers. They are those of the 2026.2 services.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk

from whimbrel.errors import (
    AuthFailed,
    Conflict,
    GuestUnbootable,
    InvalidPlan,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    Throttled,
    Unavailable,
    Unsupported,
    WhimbrelError,
)

DEFAULT_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0

QUOTA = (
    "raise the project's quota or remove what it does not need, then resume (or cutover again): what was copied is kept"
)
CAPACITY = "free capacity for this flavor and availability zone, or map the VM to others; ask the cloud's operator"

BY_WORDS: tuple[tuple[re.Pattern[str], type[WhimbrelError], str | None], ...] = tuple(
    (re.compile(words, re.IGNORECASE), kind, action)
    for words, kind, action in (
        (
            r"'NoneType' object has no attribute 'replace'",
            GuestUnbootable,
            "install open-iscsi on the compute hosts and restart nova-compute: only then it attaches managed volumes",
        ),
        (r"quota exceeded|exceeds? (available|allowed)|overquota|limitexceeded", QuotaExceeded, QUOTA),
        (r"no valid host|no weighed backends|no valid backend|weighted backend", QuotaExceeded, CAPACITY),
        (r"while it is in task_state|another action is in progress|instance .* is locked by", NotReady, None),
        (r"is locked(?! by)", Conflict, "unlock the server"),
    )
)
"""Where the number alone says too little."""

BY_VOLUME_STATE: dict[str, str] = {
    "error": "look at `openstack volume message list`, remove the volume or reset its state, then resume",
    "error_deleting": "remove what hangs on it (snapshots, clones), reset its state, delete it again, then resume",
    "error_managing": "see that the image lies in the pool under the name asked for; remove Cinder's record, resume",
    "error_managing_deleting": "remove Cinder's record as an administrator (the image stays), then resume",
    "error_extending": "reset its state to what it was, as an administrator: nothing of its content was touched",
    "error_restoring": "let the restore of its backup be repeated, or choose another volume; its content is not whole",
    "error_backing-up": "reset its state as an administrator: a backup failed, its content was not touched",
}
"""What the operator can do about Cinder's error states; Cinder has more of them, which are told as ``error``."""

BY_STATUS: dict[int, tuple[type[WhimbrelError], str | None]] = {
    400: (InvalidPlan, None),
    401: (AuthFailed, "check the entry in clouds.yaml: user, password or application credential, project, domains"),
    403: (PermissionDenied, "grant the role that docs/openstack.md names for this mode, or use an entry that has it"),
    404: (NotFound, None),
    405: (Unsupported, None),
    406: (Unsupported, "the service is too old for the microversion that is needed"),
    408: (Unavailable, None),
    409: (Conflict, None),
    413: (QuotaExceeded, QUOTA),
    501: (Unsupported, None),
}

BY_KIND: tuple[tuple[type[BaseException], type[WhimbrelError], str | None], ...] = (
    (
        keystone.AuthorizationFailure,
        AuthFailed,
        "check the entry in clouds.yaml: user, password or application credential, project, domains",
    ),
    (keystone.AuthPluginException, AuthFailed, "check the entry in clouds.yaml: its auth section is not complete"),
    (keystone.ConnectionError, Unavailable, None),
    (keystone.RetriableConnectionFailure, Unavailable, None),
    (keystone.CatalogException, Unsupported, "check region_name and interface of the entry in clouds.yaml"),
    (keystone.DiscoveryFailure, Unavailable, None),
    (sdk.ResourceTimeout, NotReady, None),
    (sdk.ConfigException, InvalidPlan, "correct clouds_yaml_name in whimbrel.yaml, or the entry in clouds.yaml"),
    (sdk.NotSupported, Unsupported, "the service is too old for the microversion that is needed"),
    (sdk.EndpointNotFound, Unsupported, "check region_name and interface of the entry in clouds.yaml"),
)
"""Failures that are no answer of a service."""


def translate(error: BaseException, what: str) -> WhimbrelError:
    """The error for ``what`` (``making volume x``) that failed with an exception of the SDK or of its transport."""
    status = _status(error)
    if status:
        return _answered(error, status, what)
    for raised, kind, action in BY_KIND:
        if isinstance(error, raised):
            return kind(f"{what} failed: {_line(error)}", action=action, cause=error)
    return Unavailable(f"{what} failed: {_line(error)}", cause=error)


def _answered(error: BaseException, status: int, what: str) -> WhimbrelError:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    request = getattr(error, "request_id", None) or headers.get("x-openstack-request-id")
    evidence = {"status": status, **({"request": request} if request else {})}
    message = f"{what} failed: {_line(error)}"
    if asks_for_pause(status, headers):
        return Throttled(message, retry_after_s=pause_s(headers), cause=error, **evidence)
    if status != 401:
        for words, kind, action in BY_WORDS:
            if words.search(message):
                return kind(message, action=action, cause=error, **evidence)
    if status in BY_STATUS:
        kind, action = BY_STATUS[status]
        return kind(message, action=action, cause=error, **evidence)
    return (Unavailable if status >= 500 else InvalidPlan)(message, cause=error, **evidence)


def asks_for_pause(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer means "later": 429, and 413 or 503 that say when.

    Cinder adds ``Retry-After: 0`` to refusals for a quota (413): that is no pause, and waiting would not help.
    """
    return status == 429 or (status in {413, 503} and headers.get("Retry-After", "0").strip() != "0")


def pause_s(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """How long ``Retry-After`` asks to wait, in seconds or as a date (RFC 9110, 10.2.3); within sane limits."""
    told = headers.get("Retry-After", "").strip()
    if told.isdigit():
        return min(float(told), MAX_PAUSE_S)
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return DEFAULT_PAUSE_S
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max((until - (now or datetime.now(UTC))).total_seconds(), 0.0), MAX_PAUSE_S)


def server_fault(server: Any) -> WhimbrelError:
    """The error for a server in state ERROR, from the fault that Nova keeps with it."""
    fault = getattr(server, "fault", None) or {}
    why = str(fault.get("message") or "Nova gives no reason").strip()
    message = f"server {server.name} is in state ERROR: {why}"
    for words, kind, action in BY_WORDS:
        if words.search(why):
            return kind(message, action=action, server=server.id)
    return GuestUnbootable(
        message, action="look at the fault with `openstack server show`, and at Nova's logs", server=server.id
    )


def volume_failed(volume: Any, why: str = "") -> WhimbrelError:
    """The error for a volume in one of Cinder's ``error`` states; ``why`` is Cinder's own message, where it has one."""
    message = f"volume {volume.name} is in state {volume.status}" + (f": {why}" if why else "")
    for words, kind, action in BY_WORDS:
        if words.search(why):
            return kind(message, action=action, volume=volume.id)
    return Conflict(
        message,
        action=BY_VOLUME_STATE.get(volume.status, BY_VOLUME_STATE["error"]),
        volume=volume.id,
    )


def _status(error: BaseException) -> int | None:
    for name in ("status_code", "http_status"):
        value = getattr(error, name, None)
        if isinstance(value, int) and value:
            return value
    return None


def _line(error: BaseException) -> str:
    """What was said, as one line without the URL: it names hosts and ids that ``what`` has already."""
    told = getattr(error, "details", None) or getattr(error, "message", None) or str(error)
    return re.sub(r"\s+", " ", str(told)).strip() or type(error).__name__
