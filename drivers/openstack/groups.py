"""Server groups: VMs that lie on one host, or each on another one."""

from __future__ import annotations

from typing import Any

from drivers.openstack.connection import Connection
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.facts import ServerGroup


def find(connection: Connection, name: str) -> Any:
    """The project's group of this name. Raises NotFound, Conflict (several)."""
    found = [group for group in _all(connection) if group.name == name]
    if not found:
        raise NotFound(
            f"there is no server group {name}",
            action=f"correct placement.group in the plan, or make it: openstack server group create {name}",
        )
    if len(found) > 1:
        raise Conflict(f"{len(found)} server groups are named {name}", action="give the plan's one a name of its own")
    return found[0]


def read(connection: Connection) -> tuple[ServerGroup, ...]:
    """All of the project; how many members one may have is the quota of a user."""
    found = _all(connection)
    if not found:
        return ()
    with connection.using("asking for the limits of Nova") as conn:
        most = conn.compute.get_limits().absolute.server_group_members
    return tuple(
        ServerGroup(
            name=group.name,
            policy=_policy(group),
            members=len(group.member_ids or ()),
            members_max=int(most) if most is not None and int(most) >= 0 else None,
        )
        for group in found
    )


def _all(connection: Connection) -> list[Any]:
    with connection.using("listing server groups") as conn:
        return list(conn.compute.server_groups())


def _policy(group: Any) -> str:
    """``policies`` was a list until microversion 2.64."""
    return str(group.policy or ", ".join(group.policies or ()))
