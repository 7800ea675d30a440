"""``stream.serve`` asked again with other settings, where the target's storage reads over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.stream import StreamActivities
from drivers.memory import MemoryCloud, Scenario
from tests.stream.streams import MIB, make_source
from tests.workflows.streams import InProcessStreams
from whimbrel.contracts.stream_io import DiskStream, ServeInput
from whimbrel.dataplane import Governor
from whimbrel.errors import Unsupported
from whimbrel.model.endpoint import Endpoint, FileEndpoint, RbdEndpoint
from whimbrel.model.point import DiskPoint
from whimbrel.model.vm import DiskSpec, TargetDisk, VolumeRef
from whimbrel.stream.config import read_config
from whimbrel.stream.place import Place

SIZE = 2 * MIB


class OneCloud:
    """A registry of one cloud."""

    def __init__(self, cloud: MemoryCloud) -> None:
        self._cloud = cloud

    def get(self, name: str) -> MemoryCloud:
        """The cloud, whatever it is called."""
        return self._cloud

    def names(self) -> list[str]:
        """Its name."""
        return [self._cloud.name]


@pytest.fixture
def streams() -> Iterator[InProcessStreams]:
    """Servers of this process."""
    MemoryCloud.reset("b")
    made = InProcessStreams()
    yield made
    made.close()
    MemoryCloud.reset("b")


def _wanted(source: Endpoint, *, rate: float | None = None) -> ServeInput:
    volume = VolumeRef(name="v", pool="p", size_bytes=SIZE, format="raw", location="")
    disk = TargetDisk(spec=DiskSpec(key="vda", size_bytes=SIZE, format="raw"), volume=volume)
    return ServeInput(
        cloud="b",
        migration="0123456789",
        vm="a/ref",
        epoch="e1",
        disks=(DiskStream(disk=disk, source=DiskPoint(key="vda", size_bytes=SIZE, endpoint=source)),),
        bandwidth_bytes_per_s=rate,
    )


def _activities(tmp_path: Path, streams: InProcessStreams, **openers: str) -> StreamActivities:
    cloud = MemoryCloud("b")
    Scenario("b").set_capabilities(imports=True)
    return StreamActivities(
        OneCloud(cloud),
        tmp_path,
        streams.socket_dir,
        streams.launch,
        streams.stop,
        governor=Governor(),
        openers=openers,
    )


def test_a_server_that_is_configured_anew_leaves_its_readers_waiting(tmp_path: Path, streams: InProcessStreams) -> None:
    """A refused connection is an I/O error of the guest whose storage reads here."""
    make_source(tmp_path / "source.raw", SIZE)
    source = FileEndpoint(path=str(tmp_path / "source.raw"))
    work = _activities(tmp_path, streams)
    work.serve(_wanted(source))
    place = Place(tmp_path, streams.socket_dir, "0123456789", "vda")
    before = read_config(place.config).http
    work.serve(_wanted(source, rate=1e6))
    assert streams.kept_sockets == [True]
    now = read_config(place.config)
    assert (now.http, now.bandwidth_bytes_per_s) == (before, 1e6)


def test_an_image_is_a_source_only_where_a_driver_lends_its_opener(tmp_path: Path, streams: InProcessStreams) -> None:
    source = RbdEndpoint(pool="volumes", image="volume-1", snapshot="s")
    with pytest.raises(Unsupported, match="only be read through rbd"):
        _activities(tmp_path, streams).serve(_wanted(source))
    work = _activities(tmp_path, streams, rbd="tests.stream.opening:open_file", other="x:y")
    config = work._config(_wanted(source), _wanted(source).disks[0], Place(tmp_path, streams.socket_dir, "m", "vda"))
    assert (config.source, config.openers) == (source, {"rbd": "tests.stream.opening:open_file"})
