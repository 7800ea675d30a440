"""Somebody else in the tenant's project, and the people who run the cloud: who take the room that a wave counts on."""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from labs.openstack import CloudHandle, fullness
from labs.openstack.furnish import COMPUTE_QUOTA, VOLUME_QUOTA
from tests.e2e_openstack.nova_site import until


class Neighbour:
    """Context manager for one cloud; at the end it has its volumes deleted and the quotas are as the lab made them."""

    def __init__(self, handle: CloudHandle) -> None:
        self.handle = handle
        self._member = handle.connect(member=True)
        self._admin = handle.connect()
        self._project = str(self._member.current_project_id)
        self._volumes: list[str] = []

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self.limit_compute(**COMPUTE_QUOTA)
        self.limit_volumes(**VOLUME_QUOTA)
        self._member.close()
        self._admin.close()

    # -- quotas -------------------------------------------------------------------------------------------------

    def limit_compute(self, **limits: int) -> None:
        """Let the project have at most this in Nova."""
        self._admin.set_compute_quotas(self._project, **limits)

    def limit_volumes(self, **limits: int) -> None:
        """The same in Cinder."""
        self._admin.set_volume_quotas(self._project, **limits)

    def used(self, resource: str) -> int:
        """What the project has of a resource of Cinder's, requests under way included."""
        path = f"/os-quota-sets/{self._project}"
        told = self._admin.block_storage.get(path, params={"usage": "true"}).json()["quota_set"][resource]
        return int(told["in_use"]) + int(told["reserved"])

    def take_volumes(self, limit: int, *, leaving: int) -> None:
        """Make volumes of 1 GiB until this much is left of a quota of so many volumes."""
        for _ in range(limit - self.used("volumes") - leaving):
            name = f"neighbour-{secrets.token_hex(4)}"
            made: Any = self._member.block_storage.create_volume(name=name, size=1, volume_type=self.handle.volume_type)
            self._volumes.append(str(made.id))
        for volume in self._volumes:
            self._until_status(volume, "available")

    def leave(self) -> None:
        """Delete them; returns when they are gone."""
        for volume in self._volumes:
            self._member.block_storage.delete_volume(volume, ignore_missing=True)
        for volume in self._volumes:
            until(
                lambda volume=volume: self._found(volume) is None,  # type: ignore[misc]
                f"the neighbour's volume {volume} is gone",
            )
        self._volumes.clear()

    def _found(self, volume: str) -> Any | None:
        return self._member.block_storage.find_volume(volume, ignore_missing=True)

    def _until_status(self, volume: str, status: str) -> None:
        def look() -> bool:
            found = self._found(volume)
            return found is not None and found.status == status

        until(look, f"the neighbour's volume {volume} is {status}")

    # -- the storage --------------------------------------------------------------------------------------------

    def full_pool(self) -> AbstractContextManager[None]:
        """Inside, the pool's quota is used up; the cluster has room."""
        return fullness.full_pool(self.handle.layout.lab, self.handle.pool)

    def limited_pool(self, more_bytes: int) -> AbstractContextManager[None]:
        """Inside, the pool takes no more than this."""
        return fullness.limited_pool(self.handle.layout.lab, self.handle.pool, more_bytes)

    def full_cluster(self) -> AbstractContextManager[None]:
        """Inside, the whole cluster is full, with the pools of both clouds."""
        return fullness.full_cluster(self.handle.layout.lab, self.handle.pool)

    def free_gib(self) -> float:
        """What Cinder's scheduler takes the pool's free space to be; it is told once a minute."""
        pools = self._admin.block_storage.backend_pools()
        return next(
            float(pool.capabilities["free_capacity_gb"]) for pool in pools if pool.name == self.handle.own_backend
        )
