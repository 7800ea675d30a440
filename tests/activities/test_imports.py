"""``import.fill`` and ``import.give_up`` of several disks: what befalls one of them is nothing to the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.imports import ImportActivities
from activities.stream import StreamActivities
from drivers.memory import MemoryCloud, Scenario
from drivers.memory.imports import ImportedDisk, MemoryImports
from tests.stream.streams import MIB, make_source
from tests.workflows.streams import InProcessStreams
from whimbrel.contracts.stream_io import DiskStream, ImportInput, ServeInput
from whimbrel.dataplane import Governor
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.endpoint import FileEndpoint
from whimbrel.model.point import DiskPoint
from whimbrel.model.vm import DiskSpec, TargetDisk, VolumeSpec
from whimbrel.stream.control import ask
from whimbrel.stream.place import Place

NAME = "two-disks"
MIGRATION = "0123456789"
SIZE = 2 * MIB
KEYS = ("vda", "vdb")
PATIENCE_S = 60.0


class Imports(MemoryImports):
    """The cloud's own, with what befalls a disk."""

    stuck: str | None = None
    """This disk's import cannot be ended, once."""
    while_filling: Callable[[str, Callable[[], bool]], None] | None = None
    """Called with a disk's key and ``should_stop`` before it is filled."""

    def give_up(self, disk: TargetDisk, *, migration: str) -> None:
        """As the cloud does it, unless it is stuck."""
        if disk.spec.key == self.stuck:
            self.stuck = None
            raise Conflict(f"the volume of {disk.spec.key} has snapshots")
        super().give_up(disk, migration=migration)

    def fill(
        self, disk: TargetDisk, *, should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> bool:
        """As the cloud does it, a little later."""
        if self.while_filling is not None:
            self.while_filling(disk.spec.key, should_stop)
        return super().fill(disk, should_stop=should_stop, on_progress=on_progress)

    def left(self, disks: Sequence[TargetDisk]) -> list[str]:
        """Keys of those that import."""
        return [disk.spec.key for disk in disks if isinstance(self._volume(disk).disk, ImportedDisk)]


class Registry:
    """One cloud, whatever it is called."""

    def __init__(self, cloud: MemoryCloud) -> None:
        self.volumes = cloud.volumes
        self.imports = Imports(cloud._state)

    def get(self, name: str) -> Any:
        """The cloud."""
        return self

    def names(self) -> list[str]:
        """Its name."""
        return [NAME]


class Importing:
    """Two volumes of a cloud that import from servers of this process."""

    def __init__(self, directory: Path, streams: InProcessStreams) -> None:
        self.directory, self.streams = directory, streams
        Scenario(NAME).set_capabilities(imports=True)
        self.registry = Registry(MemoryCloud(NAME))
        self.disks = tuple(self._disk(key) for key in KEYS)
        self.input = ImportInput(cloud=NAME, migration=MIGRATION, disks=self.disks)
        self.work = ImportActivities(self.registry, directory, streams.socket_dir, streams.launch)
        self._serve()
        self.work.begin(self.input)

    def _disk(self, key: str) -> TargetDisk:
        make_source(self.directory / f"{key}.raw", SIZE)
        spec = VolumeSpec(name=f"app-{key}", pool="default", size_bytes=SIZE, format="raw", migration=MIGRATION)
        traits = DiskSpec(key=key, size_bytes=SIZE, format="raw")
        return TargetDisk(spec=traits, volume=self.registry.volumes.ensure_volume(spec))

    def _serve(self) -> None:
        activities = StreamActivities(
            self.registry,
            self.directory,
            self.streams.socket_dir,
            self.streams.launch,
            self.streams.stop,
            governor=Governor(),
        )
        sources = {key: FileEndpoint(path=str(self.directory / f"{key}.raw")) for key in KEYS}
        streams = tuple(
            DiskStream(disk=disk, source=DiskPoint(key=key, size_bytes=SIZE, endpoint=sources[key]))
            for key, disk in zip(KEYS, self.disks, strict=True)
        )
        activities.serve(ServeInput(cloud=NAME, migration=MIGRATION, vm="a/ref", epoch="e1", disks=streams))

    def place(self, key: str) -> Place:
        return Place(self.directory, self.streams.socket_dir, MIGRATION, key)


@pytest.fixture
def importing(tmp_path: Path) -> Iterator[Importing]:
    MemoryCloud.reset(NAME)
    streams = InProcessStreams()
    yield Importing(tmp_path, streams)
    streams.close()
    MemoryCloud.reset(NAME)


@pytest.mark.parametrize("stuck", KEYS)
def test_an_import_that_cannot_be_ended_keeps_no_other_from_it(importing: Importing, stuck: str) -> None:
    imports = importing.registry.imports
    assert imports.left(importing.disks) == list(KEYS)
    imports.stuck = stuck
    with pytest.raises(Conflict, match=stuck):
        importing.work.give_up(importing.input)
    assert imports.left(importing.disks) == [stuck]
    importing.work.give_up(importing.input)
    assert imports.left(importing.disks) == []


def test_a_server_of_a_disk_that_is_not_filled_now_is_started_again(
    importing: Importing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest reads that disk all the while. It is told the limit of now."""
    told: list[object] = []

    def asked(path: Path, verb: str, **words: object) -> dict[str, Any]:
        if verb == "set-bandwidth":
            told.append(words["bytes_per_s"])
        return ask(path, verb, **words)

    monkeypatch.setattr("activities.imports.ask", asked)
    dying = {"vda": "vdb", "vdb": "vda"}
    came_back: list[str] = []

    def lose_the_other(filled: str, should_stop: Callable[[], bool]) -> None:
        place = importing.place(dying[filled])
        importing.streams.stop(place)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            should_stop()
            try:
                ask(place.control, "status")
            except Unavailable:
                time.sleep(0.02)
                continue
            came_back.append(dying[filled])
            return

    importing.registry.imports.while_filling = lose_the_other
    limited = importing.input.model_copy(update={"bandwidth_bytes_per_s": 50e6})
    ActivityEnvironment().run(importing.work.fill, limited)
    assert told == [50e6] * 4
    assert came_back == ["vdb", "vda"]
