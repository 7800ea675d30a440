"""From an administrator's project to the tenant's: Cinder's transfer of a volume.

``manage`` makes a volume in the project of whoever asks. Where that is an administrator's entry apart from the
tenant's, the volume is offered by the one and taken by the other. The key of an offer is told once, to whoever has made
it: an offer of an attempt that died is withdrawn and made anew, so that an attempt which comes late finds it gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from drivers.openstack import marks, quotas
from drivers.openstack.connection import Connection
from whimbrel.errors import InvalidPlan, NotReady, QuotaExceeded

OFFERED = "awaiting-transfer"
"""Cinder's status of a volume that is offered."""


class Transfers:
    """Between two entries of one cloud; where the administrator's project is the tenant's there is nothing to do."""

    def __init__(self, tenant: Connection, admin: Connection) -> None:
        self._tenant = tenant
        self._admin = admin
        self._apart: bool | None = None

    @property
    def apart(self) -> bool:
        """Whether the two are different projects. Raises InvalidPlan when they are of different clouds."""
        if self._tenant is self._admin:
            return False
        if self._apart is None:
            mine, project = _place(self._tenant)
            other, apart = _place(self._admin)
            if mine != other:
                raise InvalidPlan(
                    f"entries {self._tenant.cloud} and {self._admin.cloud} of clouds.yaml are of different clouds",
                    action="correct admin_clouds_yaml_name in whimbrel.yaml",
                    found=other,
                    wanted=mine,
                )
            self._apart = project != apart
        return self._apart

    def waiting(self) -> list[Any]:
        """All volumes of the administrator's project: some may be on their way."""
        if not self.apart:
            return []
        with self._admin.using(f"listing volumes of the project of {self._admin.cloud}") as conn:
            return list(conn.block_storage.volumes())

    def hand_over(self, volume: Any) -> None:
        """Bring the volume into the tenant's project. Again is fine. Raises NotReady, QuotaExceeded (the tenant's)."""
        if not self.apart:
            return
        with self._tenant.using("looking for the tenant's project") as conn:
            project = conn.current_project_id
        if volume.project_id == project:
            return
        self.withdraw(volume)
        with self._admin.using(f"offering volume {volume.name or volume.id} to the tenant's project") as conn:
            if conn.block_storage.get_volume(volume.id).status != "available":
                raise NotReady(f"volume {volume.name or volume.id} cannot be offered yet", volume=volume.id)
            made = conn.block_storage.create_transfer(volume_id=volume.id, name=f"whimbrel-{volume.id}")
        with self._tenant.using(f"taking volume {volume.name or volume.id} that {self._admin.cloud} offers") as conn:
            conn.block_storage.accept_transfer(made.id, made.auth_key)

    def withdraw(self, volume: Any) -> None:
        """Take offers of the volume back; none is fine."""
        if volume.status != OFFERED:
            return
        with self._admin.using(f"withdrawing the offer of volume {volume.name or volume.id}") as conn:
            for offer in list(conn.block_storage.transfers()):
                if offer.volume_id == volume.id:
                    conn.block_storage.delete_transfer(offer.id, ignore_missing=True)

    def check_room(self, sizes_bytes: Sequence[int]) -> None:
        """For a moment the volumes count in the administrator's project. Raises QuotaExceeded."""
        if not self.apart:
            return
        needed = {"volumes": len(sizes_bytes), "volume space": sum(map(marks.whole_gib, sizes_bytes)) * marks.GIB}
        for quota in quotas.volume_quotas(self._admin):
            wanted = needed.get(quota.resource, 0) if quota.pool is None else 0
            if quota.limit - quota.used < wanted:
                raise QuotaExceeded(
                    f"the project of {self._admin.cloud}, where volumes are for a moment, lacks room: {quota.resource}",
                    action=f"raise its quota of {quota.resource}, or name an entry that is an administrator in the "
                    "tenant's own project",
                    limit=quota.limit,
                    used=quota.used,
                    needed=wanted,
                )


def _place(connection: Connection) -> tuple[str, str]:
    """Where an entry's Cinder is, and the entry's project."""
    with connection.using(f"looking for Cinder of entry {connection.cloud}") as conn:
        return urlsplit(str(conn.block_storage.get_endpoint())).netloc, str(conn.current_project_id)
