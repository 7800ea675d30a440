"""What the suites on points in time share: a VM, and a point opened or passed."""

from __future__ import annotations

from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import SIZE, ContractSuite
from whimbrel.model.naming import point_key
from whimbrel.model.point import OpenPoint


class PointSuite(ContractSuite):
    disks: tuple[str, ...] = ("vda",)

    def vm(self, harness: Harness, *, running: bool | None = None) -> str:
        """A VM that is on where the platform can open points of such ones, unless the test asks for one of them."""
        if running:
            needs(harness, Lack.LIVE_POINTS)
        on = Lack.LIVE_POINTS not in harness.lacks if running is None else running
        return harness.make_vm([(SIZE, self.disk_format)] * len(self.disks), running=on)

    def open(
        self,
        harness: Harness,
        ref: str,
        migration: str,
        serial: int,
        *,
        since: str | None = None,
        track: bool = True,
        resting: bool = False,
        disks: tuple[str, ...] = ("vda",),
    ) -> OpenPoint:
        key = point_key(migration, serial)
        return harness.cloud.points.open(
            ref, disks, key=key, since=since, migration=migration, track=track, resting=resting
        )

    def close(self, harness: Harness, ref: str, migration: str, serial: int) -> None:
        harness.cloud.points.close(ref, point_key(migration, serial), migration=migration)

    def passed(self, harness: Harness, ref: str, migration: str, serial: int) -> str:
        """A point opened and closed again; its token."""
        token = self.open(harness, ref, migration, serial).token
        self.close(harness, ref, migration, serial)
        assert token is not None
        return token
