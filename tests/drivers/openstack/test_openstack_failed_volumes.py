"""What Cinder could not make is made again once there may be room for it. Without a cloud."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from openstack.block_storage.v3.snapshot import Snapshot
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2.server import Server
from openstack.exceptions import HttpException
from openstack.test import fakes

from drivers.ceph import RbdImages
from drivers.openstack import inventory, marks
from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection, settled
from drivers.openstack.pausing import LIMIT_S, REST_S
from drivers.openstack.points import OpenStackPoints
from drivers.openstack.volumes import VM, WRITER, OpenStackVolumes
from whimbrel.errors import Conflict, NotReady, QuotaExceeded, Unavailable, Unsupported, WhimbrelError
from whimbrel.model.vm import VolumeSpec

MIGRATION = "0123456789"
SPEC = VolumeSpec(name=f"web-vda-{MIGRATION}", pool="fast", size_bytes=marks.GIB, format="raw", migration=MIGRATION)
KEY = f"whimbrel-{MIGRATION}-3"
NO_ROOM = "schedule allocate volume:Could not find any available weighted backend."


class Cinder:
    """Volumes and snapshots that become what ``room`` says."""

    def __init__(self) -> None:
        self.room = False
        self.there: list[Any] = []
        self.taken: list[Any] = []
        self.states = ""
        """What snapshots become, whatever room there is."""

    def volumes(self, **query: Any) -> list[Any]:
        return [volume for volume in self.there if query.get("name") in {None, volume.name}]

    def create_volume(self, **wanted: Any) -> Any:
        state = "available" if self.room else "error"
        made = fakes.generate_fake_resource(Volume, **{**wanted, "status": state, "attachments": []})
        self.there.append(made)
        return made

    def get_volume(self, volume: str) -> Any:
        return next(one for one in self.there if one.id == volume)

    def find_volume(self, volume: str, **_: Any) -> Any | None:
        return next((one for one in self.there if one.id == volume), None)

    def delete_volume(self, volume: str, **_: Any) -> None:
        self.there = [one for one in self.there if one.id != volume]

    def get(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(json=lambda: {"messages": [{"user_message": NO_ROOM}]})

    def snapshots(self, volume_id: str) -> list[Any]:
        return [one for one in self.taken if one.volume_id == volume_id]

    def create_snapshot(self, **wanted: Any) -> Any:
        state = self.states or ("available" if self.room else "error")
        wanted.pop("is_forced")
        self.taken.append(fakes.generate_fake_resource(Snapshot, **{**wanted, "status": state}))

    def delete_snapshot(self, snapshot: str, **_: Any) -> None:
        self.taken = [one for one in self.taken if one.id != snapshot]


@pytest.fixture
def cinder() -> Cinder:
    return Cinder()


@pytest.fixture
def connection(cinder: Cinder) -> Connection:
    made = Connection("nowhere")
    made._made = SimpleNamespace(block_storage=cinder)
    return made


@pytest.fixture
def volumes(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> OpenStackVolumes:
    monkeypatch.setattr(OpenStackVolumes, "pools", lambda _: [SimpleNamespace(name="fast")])
    return OpenStackVolumes(connection, Backing(None, {}))


def test_a_volume_that_failed_is_told_and_replaced(volumes: OpenStackVolumes, cinder: Cinder) -> None:
    for _ in range(2):
        with pytest.raises(QuotaExceeded, match="available weighted backend"):
            volumes.ensure_volume(SPEC)
        (failed,) = cinder.there
    cinder.room = True
    made = volumes.ensure_volume(SPEC)
    assert [one.id for one in cinder.there] == [made.location] != [failed.id]
    assert volumes.ensure_volume(SPEC) == made


def _written(volume: Any) -> None:
    volume.metadata = {**volume.metadata, WRITER: "session"}


def _announced(volume: Any) -> None:
    volume.metadata = {**volume.metadata, VM: "ref"}


def _attached(volume: Any) -> None:
    volume.attachments = [{"server_id": "one"}]


@pytest.mark.parametrize("use", [_written, _announced, _attached])
def test_one_that_was_used_is_left_alone(volumes: OpenStackVolumes, cinder: Cinder, use: Callable[[Any], None]) -> None:
    cinder.room = True
    made = volumes.ensure_volume(SPEC)
    (volume,) = cinder.there
    volume.status = "error"
    use(volume)
    with pytest.raises(QuotaExceeded):
        volumes.ensure_volume(SPEC)
    assert [one.id for one in cinder.there] == [made.location]


def test_one_of_another_shape_is_left_alone(volumes: OpenStackVolumes, cinder: Cinder) -> None:
    with pytest.raises(QuotaExceeded):
        volumes.ensure_volume(SPEC)
    with pytest.raises(Conflict, match="another size"):
        volumes.ensure_volume(SPEC.model_copy(update={"size_bytes": 2 * marks.GIB}))
    assert len(cinder.there) == 1


def test_snapshots_that_failed_are_taken_again(connection: Connection, cinder: Cinder) -> None:
    """All of the point: those that succeeded are of another instant."""
    points = OpenStackPoints(connection, Backing(None, {}))
    disks = [SimpleNamespace(id=name, name=name) for name in ("one", "two")]

    def take() -> None:
        points._take(None, disks, KEY, migration=MIGRATION, tracked=())
        points._snapshots.ready(disks, KEY)

    with pytest.raises(Conflict):
        take()
    assert len(cinder.taken) == 2
    cinder.taken[0].status = "available"
    before = {one.id for one in cinder.taken}
    cinder.room = True
    take()
    assert len(cinder.taken) == 2
    assert not before & {one.id for one in cinder.taken}
    after = {one.id for one in cinder.taken}
    take()
    assert {one.id for one in cinder.taken} == after


class FullImages(RbdImages):
    """A pool that is full, without a cluster."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes_set: list[tuple[str, str, int]] = []

    def reach(self, pool: str) -> None:
        raise QuotaExceeded(f"pool {pool} is full")

    def resize(self, pool: str, image: str, size_bytes: int) -> None:
        self.sizes_set.append((pool, image, size_bytes))


class Roomy(FullImages):
    """One that has room."""

    def reach(self, pool: str) -> None:
        """Nothing to say."""


@pytest.mark.parametrize(("kind", "freed"), [(FullImages, True), (Roomy, False)])
def test_what_fills_a_pool_is_freed_before_cinder_deletes_it(
    connection: Connection, cinder: Cinder, kind: type[FullImages], *, freed: bool
) -> None:
    """And only then: with room it is Cinder's own work."""
    volumes, images = OpenStackVolumes(connection, Backing(None, {})), kind()
    cinder.room = True
    made = cinder.create_volume(name=SPEC.name, volume_type="fast", metadata={marks.MIGRATION: MIGRATION})
    volumes._backing = Backing(images, {"fast": "pool-fast"})
    with pytest.raises(Conflict):
        volumes.ensure_absent(SPEC.name, "fast", migration="another")
    assert images.sizes_set == []
    volumes.ensure_absent(SPEC.name, "fast", migration=MIGRATION)
    assert images.sizes_set == ([("pool-fast", f"volume-{made.id}", 0)] if freed else [])
    assert cinder.there == []


def test_a_volume_that_is_never_made_in_a_full_pool_is_not_waited_for(
    volumes: OpenStackVolumes, cinder: Cinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cinder's own client of Ceph waits without a word."""
    monkeypatch.setattr("drivers.openstack.connection.POLL_S", 0.01)
    monkeypatch.setattr(volumes, "_ready", lambda _: settled(lambda: None, "being made", patience_s=0.05))
    cinder.room = True
    with pytest.raises(NotReady, match="being made"):
        volumes.ensure_volume(SPEC)
    volumes._backing = Backing(FullImages(), {"fast": "pool-fast"})
    with pytest.raises(QuotaExceeded, match="pool pool-fast is full"):
        volumes.ensure_volume(SPEC)
    assert len(cinder.there) == 1


class Nova:
    """One server, which can be paused."""

    def __init__(self) -> None:
        self.server = fakes.generate_fake_resource(
            Server, name="web", status="ACTIVE", vm_state="active", task_state=None, metadata={}
        )

    def get_server(self, _: str) -> Any:
        return self.server

    def set_server_metadata(self, _: str, **marks: str) -> None:
        self.server.metadata = {**self.server.metadata, **marks}

    def delete_server_metadata(self, _: str, keys: list[str]) -> None:
        self.server.metadata = {key: text for key, text in self.server.metadata.items() if key not in keys}

    def pause_server(self, _: str) -> None:
        self.server.vm_state = "paused"

    def unpause_server(self, _: str) -> None:
        self.server.vm_state = "active"


def _two_disks(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> tuple[Nova, OpenStackPoints]:
    nova = Nova()
    connection._made.compute = nova
    disks = [(key, SimpleNamespace(id=key, name=key, volume_type="slow", metadata={})) for key in ("vda", "vdb")]
    seen = SimpleNamespace(
        find=lambda _: ("ref", nova.server, None), disks_of=lambda *_: disks, server_of=lambda _: nova.server
    )
    monkeypatch.setattr(inventory, "read", lambda _: seen)
    monkeypatch.setattr("drivers.openstack.connection.POLL_S", 0.01)
    points = OpenStackPoints(connection, Backing(RbdImages(), {"slow": "pool"}))
    monkeypatch.setattr(points, "_check_free", lambda *_, **__: None)
    return nova, points


def test_a_guest_is_not_left_paused_while_a_person_is_asked(
    connection: Connection, cinder: Cinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two disks: it is paused for their snapshots, of which the project may have no second one."""
    nova, points = _two_disks(connection, monkeypatch)
    paused = []

    def refuse(**wanted: Any) -> None:
        paused.append(nova.server.vm_state)
        if len(paused) == 2:
            raise HttpException("SnapshotLimitExceeded: Maximum number of snapshots allowed (1)", http_status=413)

    monkeypatch.setattr(cinder, "create_snapshot", refuse)
    with pytest.raises(QuotaExceeded):
        points.open("ref", ["vda", "vdb"], key=KEY, migration=MIGRATION)
    assert paused == ["paused", "paused"]
    assert nova.server.vm_state == "active"
    assert nova.server.metadata == {}


@pytest.mark.parametrize("state", ["active", "stopped"])
def test_disks_behind_a_mover_are_no_point_before_the_server_is_off(
    connection: Connection, cinder: Cinder, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """What a snapshot of the running server shows is older than what is copied at last."""
    nova, points = _two_disks(connection, monkeypatch)
    points._backing = Backing(RbdImages(), {}, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(points, "_serve", _refused)  # as far as it matters here
    nova.server.vm_state, nova.server.power_state = state, 4 if state == "stopped" else 1
    cinder.room = True
    with pytest.raises(Unsupported if state == "active" else Unavailable):
        points.open("ref", ["vda", "vdb"], key=KEY, migration=MIGRATION, resting=True)
    assert len(cinder.taken) == (0 if state == "active" else 2)


class Clock:
    """What ``datetime.now`` tells the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = datetime(2026, 11, 26, tzinfo=UTC)
        told = SimpleNamespace(now=lambda _: self.at, fromisoformat=datetime.fromisoformat)
        monkeypatch.setattr("drivers.openstack.pausing.datetime", told)

    def passes(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.mark.parametrize("away", [False, True], ids=["slow", "away"])
def test_a_guest_is_paused_for_so_long_and_no_longer(
    connection: Connection, cinder: Cinder, monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    """What Cinder finishes after the guest has gone on is not of one instant: it goes before the next attempt."""
    nova, points = _two_disks(connection, monkeypatch)
    clock = Clock(monkeypatch)
    at_once = lambda look, waiting: settled(look, waiting, patience_s=0.0)  # noqa: E731
    monkeypatch.setattr("drivers.openstack.snapshots.settled", at_once)

    def attempt() -> str:
        try:
            points.open("ref", ["vda", "vdb"], key=KEY, migration=MIGRATION)
        except WhimbrelError as error:
            return error.message
        raise AssertionError("it opened")

    cinder.states = "creating"
    assert "are being taken" in attempt()
    assert nova.server.vm_state == "paused"
    if away:
        monkeypatch.setattr(cinder, "snapshots", _refused)
    clock.passes(LIMIT_S - 1)
    attempt()
    assert nova.server.vm_state == "paused"
    clock.passes(2)
    with pytest.raises(NotReady, match="it goes on") as caught:
        points.open("ref", ["vda", "vdb"], key=KEY, migration=MIGRATION)
    assert caught.value.retry_after_s == REST_S
    assert nova.server.vm_state == "active"
    late = list(cinder.taken)
    for snapshot in late:
        snapshot.status = "available"
    monkeypatch.setattr(cinder, "snapshots", Cinder.snapshots.__get__(cinder))
    cinder.states = "available"
    monkeypatch.setattr(points, "_serve", _refused)  # as far as it matters here
    assert "being deleted" in attempt()
    assert nova.server.vm_state == "active"
    assert attempt() == "nobody listens"
    assert not {one.id for one in late} & {one.id for one in cinder.taken}
    assert len(cinder.taken) == 2
    assert (nova.server.vm_state, nova.server.metadata) == ("active", {})


def _refused(*_: Any, **__: Any) -> Any:
    raise Unavailable("nobody listens")
