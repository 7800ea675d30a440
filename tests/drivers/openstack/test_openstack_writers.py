"""Marks of a writer session on Cinder's volumes: made once, before anything else, and found by the next attempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from drivers.openstack.backing import Backing
from drivers.openstack.connection import Connection
from drivers.openstack.mover import ServedVolume
from drivers.openstack.volumes import WRITER, OpenStackVolumes
from whimbrel.errors import Conflict, NotReady
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.vm import VolumeRef

KEY = "w-0123456789"
DISKS = ("vda", "vdb", "vdc")


class Cloud(Connection):
    """In the place of Cinder and Nova: what was asked to be changed, in order; it is changed for the next look."""

    def __init__(self) -> None:
        super().__init__("standing-in")
        self.metadata: dict[str, dict[str, str]] = {disk: {"theirs": "stays"} for disk in DISKS}
        self.done: list[str] = []

    @contextmanager
    def using(self, what: str) -> Iterator[Any]:
        yield SimpleNamespace(
            block_storage=SimpleNamespace(volumes=self._volumes, set_volume_metadata=self._mark),
            compute=SimpleNamespace(servers=list),
        )

    def _volumes(self) -> list[SimpleNamespace]:
        like = {"attachments": [], "status": "available", "size": 1, "volume_type": "plain"}
        return [
            SimpleNamespace(id=disk, name=f"volume {disk}", metadata=dict(found), **like)
            for disk, found in self.metadata.items()
        ]

    def _mark(self, volume: str, **metadata: str) -> None:
        self.metadata[volume] |= metadata
        self.done.append(f"{volume} {' '.join(f'{key}={value}' for key, value in metadata.items())}")


class Serving:
    """In the place of ``Movers``: a server that is not there at first."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.boots = 1

    def serve(self, key: str, served: Sequence[ServedVolume]) -> Mapping[str, NbdEndpoint]:
        self.cloud.done.append("serve")
        if self.boots:
            self.boots -= 1
            raise NotReady("it boots")
        return {one.volume: NbdEndpoint(host="10.0.0.7", port=1, export=one.volume, writable=True) for one in served}


def attempt(cloud: Cloud, serving: Serving) -> list[str]:
    """Disks of the session."""
    volumes = OpenStackVolumes(cloud, Backing(None, {}, serving))  # type: ignore[arg-type]
    refs = {disk: VolumeRef(name=disk, pool="plain", size_bytes=1, format="raw", location=disk) for disk in DISKS}
    session = volumes.open_writer(KEY, refs, migration="m1")
    return [point.key for point in session.disks]


@pytest.mark.parametrize("marked", [(), ("vda",), ("vdb",), ("vda", "vdc"), DISKS], ids="+".join)
def test_only_the_marks_that_an_attempt_before_has_not_made_are_made(marked: tuple[str, ...]) -> None:
    cloud = Cloud()
    for disk in marked:
        cloud.metadata[disk][WRITER] = KEY
    serving = Serving(cloud)
    with pytest.raises(NotReady):
        attempt(cloud, serving)
    assert cloud.done == [*(f"{disk} {WRITER}={KEY}" for disk in DISKS if disk not in marked), "serve"]
    cloud.done.clear()
    assert attempt(cloud, serving) == list(DISKS)
    assert cloud.done == ["serve"]
    assert all(found == {"theirs": "stays", WRITER: KEY} for found in cloud.metadata.values())


def test_a_volume_of_another_session_is_refused_before_any_is_marked() -> None:
    cloud = Cloud()
    cloud.metadata["vdc"][WRITER] = "w-another"
    with pytest.raises(Conflict, match="w-another"):
        attempt(cloud, Serving(cloud))
    assert cloud.done == []
