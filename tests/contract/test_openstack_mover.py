"""Points and volumes of a pool that the worker's Ceph key does not open, through mover servers; as the plain member.

Every test boots servers, so only a few run without ``slow``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from drivers.openstack import OpenStackCloud
from labs.openstack import OpenStackLab
from tests.contract.api_calls import Calls, Killed
from tests.contract.blockio import opened, read_point, write_point
from tests.contract.harness import Harness, Lack
from tests.contract.openstack_harness import OpenStackHarness, patiently
from tests.contract.openstack_mover_harness import MoverHarness, key_without_the_pool
from tests.contract.suites import PointInTimeContract, UntrackedPointContract, VolumeContract
from tests.contract.suites.suite import MIB, SIZE, ContractSuite
from whimbrel.errors import PermissionDenied, Unsupported, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.vm import DiskFormat

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(900)]


class _Mover(ContractSuite):
    disk_format: DiskFormat = "raw"

    @pytest.fixture
    def harness(self, openstack_lab: OpenStackLab) -> Iterator[Harness]:
        harness = MoverHarness(openstack_lab.cloud("a"))
        yield harness
        harness.end()


@pytest.mark.slow
class TestMoverPoint(_Mover, PointInTimeContract):
    pass


@pytest.mark.slow
class TestMoverUntrackedPoint(_Mover, UntrackedPointContract):
    pass


@pytest.mark.slow
class TestMoverVolume(_Mover, VolumeContract):
    pass


class TestMoverSession(_Mover):
    """What only this way has."""

    def test_a_disk_goes_there_and_is_read_back(self, harness: Harness, migration: str) -> None:
        assert isinstance(harness, MoverHarness)
        volume = self.volume(harness, migration)
        key = writer_key(migration)
        with pytest.raises(PermissionDenied):
            key_without_the_pool(harness.lab).sizes([(harness.lab.pool, f"volume-{volume.location}")])
        session = harness.cloud.volumes.open_writer(key, {"vda": volume}, migration=migration)
        endpoint = session.disk("vda").endpoint
        assert isinstance(endpoint, NbdEndpoint)
        write_point(session.disk("vda"), MIB, b"through")
        assert [name for name in harness.cloud.target_facts().leftovers if key in name] == [
            f"mover server of session {key}"
        ]
        assert endpoint.tls is not None
        stranger = endpoint.tls.model_copy(update={"directory": str(harness.lab.mover_tls.parent / "libvirt")})
        with pytest.raises(WhimbrelError), opened(endpoint.model_copy(update={"tls": stranger})) as device:
            device.lane().close()
        harness.cloud.volumes.close_writer(key)
        assert harness.read_volume(volume)[MIB : MIB + 7] == b"through"
        assert key not in " ".join(harness.cloud.target_facts().leftovers)

    def test_a_point_is_killed_after_every_call_of_its_opening_and_closing(
        self, harness: Harness, migration: str
    ) -> None:
        """What is there is found by the next attempt, and nothing is left."""
        assert isinstance(harness, MoverHarness)
        ref = harness.make_vm([(SIZE, "raw")], running=True)
        harness.guest_write(ref, "vda", 5, b"frozen")
        key = point_key(migration, 1)
        opened_by = killed(harness, lambda cloud: cloud.points.open(ref, ["vda"], key=key, migration=migration))
        assert [call.split()[-1] for call in opened_by] == ["snapshot", "volume", "port", "server"]
        harness.guest_write(ref, "vda", 5, b"later!")
        point = harness.cloud.points.open(ref, ["vda"], key=key, migration=migration)
        assert read_point(point.disk("vda"))[:11] == bytes(5) + b"frozen"
        assert list(harness.cloud.points.owned(ref, migration)) == [key]
        closed_by = killed(harness, lambda cloud: cloud.points.close(ref, key, migration=migration))
        assert [call.split()[1] for call in closed_by] == ["DELETE"] * 4
        assert list(harness.cloud.points.owned(ref, migration)) == []
        assert key not in " ".join(harness.cloud.target_facts().leftovers)

    def test_a_writer_is_killed_after_every_call_of_its_opening_and_closing(
        self, harness: Harness, migration: str
    ) -> None:
        assert isinstance(harness, MoverHarness)
        chosen, key = {"vda": self.volume(harness, migration)}, writer_key(migration)
        opened_by = killed(harness, lambda cloud: cloud.volumes.open_writer(key, chosen, migration=migration))
        assert [call.split()[-1] for call in opened_by] == ["metadata", "port", "server"]
        session = harness.cloud.volumes.open_writer(key, chosen, migration=migration)
        write_point(session.disk("vda"), 0, b"once")
        closed_by = killed(harness, lambda cloud: cloud.volumes.close_writer(key))
        assert [call.split()[1] for call in closed_by] == ["DELETE"] * 3
        assert key not in " ".join(harness.cloud.target_facts().leftovers)
        assert harness.read_volume(chosen["vda"])[:4] == b"once"
        harness.cloud.volumes.ensure_absent(chosen["vda"].name, chosen["vda"].pool, migration=migration)
        assert list(harness.cloud.volumes.owned(migration)) == []

    def test_a_disk_that_a_vm_has_is_not_written(self, harness: Harness, migration: str) -> None:
        vm = harness.cloud.compute.inspect(harness.make_vm([(SIZE, "raw")]))
        with pytest.raises(Unsupported, match="cannot be written"):
            harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)


def killed(harness: MoverHarness, act: Callable[[OpenStackCloud], object]) -> list[str]:
    """Attempts at ``act``, each by another worker that dies after the first thing that it changes; those things."""
    made: list[str] = []
    while True:
        cloud, calls = harness.bare_cloud(), Calls(at=1, after=True)
        try:
            with calls.watching(cloud):
                patiently(lambda cloud=cloud: act(cloud))  # type: ignore[misc]
            return made
        except Killed:
            made += calls.seen
        finally:
            cloud.close()


def test_what_is_left_out_does_not_grow_unseen() -> None:
    assert MoverHarness.lacks - OpenStackHarness.lacks == {Lack.ALLOCATION, Lack.WRITE_BACK}
