"""How far the credentials and the mover reach: roles, an end, versions of the APIs, pools of the storage."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from openstack import exceptions as sdk

from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from whimbrel.errors import WhimbrelError
from whimbrel.model.facts import AccessFacts

ADMIN = "admin"
NEEDED: tuple[tuple[str, str, tuple[int, int], str], ...] = (
    ("compute", "Nova", (2, 47), "flavors inside servers"),
    ("block_storage", "Cinder", (3, 27), "attachments"),
)
"""Service, its name, the oldest version of its API that is enough, and what came with it."""
READING = {"reader", "auditor"}
"""Roles that can look and not act."""
KNOWN_FOR_S = 60.0
"""What a token may do is asked this seldom: it costs Keystone as much as all other questions of a precheck."""


class _Known(NamedTuple):
    key: str
    at: float
    token: dict[str, Any]
    ahead: timedelta | None
    """Of our own clock."""


_KNOWN: WeakKeyDictionary[Connection, _Known] = WeakKeyDictionary()


def read(connection: Connection, backing: Backing) -> tuple[AccessFacts, datetime | None]:
    """The facts, and the clock of Keystone. Raises AuthFailed, Unavailable."""
    token, clock = _token(connection)
    return (
        AccessFacts(
            roles=tuple(sorted(role["name"] for role in token.get("roles", ()))),
            ends_at=_end(connection, token),
            too_old=tuple(_too_old(connection)),
            storage_unreached=tuple(backing.unreached()),
            mover_lacks=tuple(backing.movers.lacks()) if backing.movers is not None else (),
        ),
        clock,
    )


def may_act(access: AccessFacts) -> bool:
    """Whether the roles are of those that can do something; unknown ones are given the benefit of the doubt."""
    return not access.roles or bool(set(access.roles) - READING)


def is_admin(connection: Connection) -> bool:
    """Whether the credentials are an administrator's. Raises AuthFailed, Unavailable."""
    with connection.using("asking for the roles of the credentials") as conn:
        return ADMIN in (conn.session.auth.get_access(conn.session).role_names or ())


def _token(connection: Connection) -> tuple[dict[str, Any], datetime | None]:
    """What Keystone says about the token, and its clock; asked again after ``KNOWN_FOR_S`` or for another token."""
    with connection.using("asking about the credentials") as conn:
        key = conn.auth_token
    known = _KNOWN.get(connection)
    if known is None or known.key != key or time.monotonic() - known.at > KNOWN_FOR_S:
        token, clock = _ask_about_token(connection)
        ahead = clock - datetime.now(UTC) if clock is not None else None
        known = _KNOWN[connection] = _Known(key, time.monotonic(), token, ahead)
    return known.token, datetime.now(UTC) + known.ahead if known.ahead is not None else None


def _ask_about_token(connection: Connection) -> tuple[dict[str, Any], datetime | None]:
    with connection.using("asking about the credentials") as conn:
        answer = conn.identity.get("/auth/tokens", headers={"X-Subject-Token": conn.auth_token})
        if answer.status_code == HTTPStatus.NOT_FOUND:
            # the token was revoked: the question itself was repeated with a new one, its subject was not
            answer = conn.identity.get("/auth/tokens", headers={"X-Subject-Token": conn.auth_token})
        sdk.raise_from_response(answer)
        token: dict[str, Any] = answer.json()["token"]
    try:
        clock = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return token, None
    return token, clock if clock.tzinfo is not None else clock.replace(tzinfo=UTC)


def _end(connection: Connection, token: dict[str, Any]) -> datetime | None:
    """When no new token can be had any more; None: never, as far as one can see."""
    ends = [token.get("user", {}).get("password_expires_at")] if "password" in token.get("methods", ()) else []
    if "token" in token.get("methods", ()):
        ends.append(token.get("expires_at"))  # a token that was given: it cannot be renewed
    credential = token.get("application_credential")
    if credential:
        with connection.using("asking about the application credential") as conn:
            user = token["user"]["id"]
            answer = conn.identity.get(f"/users/{user}/application_credentials/{credential['id']}")
        if answer.ok:  # a restricted one may be kept from looking at itself
            ends.append(answer.json()["application_credential"].get("expires_at"))
    return min((_time(end) for end in ends if end), default=None)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _too_old(connection: Connection) -> list[str]:
    found = []
    for service, name, needed, why in NEEDED:
        with connection.using(f"asking for the version of {name}") as conn:
            newest = getattr(conn, service).get_endpoint_data().max_microversion or (0, 0)
        if tuple(newest) < needed:
            has = ".".join(map(str, newest)) if tuple(newest) > (0, 0) else "no microversions"
            found.append(f"{name}'s API has {has}, needed is {'.'.join(map(str, needed))} ({why})")
    return found


def refusal(error: WhimbrelError) -> AccessFacts:
    """The facts when the cloud has not let us in."""
    return AccessFacts(why_refused=error.message)
