"""The import that a precheck tries: what fails is told, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from activities import probe_import
from activities.probe_import import ImportProbe
from drivers.memory import MemoryCloud, Scenario
from tests.workflows.streams import InProcessStreams
from whimbrel.errors import Conflict, NotReady, Unavailable, WhimbrelError
from whimbrel.stream.place import Place

MIGRATION = "0123456789"
NAME = "probed"


@pytest.fixture
def scenario(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scenario]:
    """A cloud whose storage imports, and probes that do not wait long."""
    monkeypatch.setattr(probe_import, "SIZE_BYTES", 4 << 20)
    monkeypatch.setattr(probe_import, "OPEN_S", 0.2)
    monkeypatch.setattr(probe_import, "POLL_S", 0.01)
    MemoryCloud.reset(NAME)
    made = Scenario(NAME)
    made.set_capabilities(imports=True)
    yield made
    MemoryCloud.reset(NAME)


@pytest.fixture
def streams() -> Iterator[InProcessStreams]:
    """Servers of this process."""
    made = InProcessStreams()
    yield made
    made.close()


def _run(tmp_path: Path, streams: InProcessStreams, *, patient: bool = False) -> None:
    cloud = MemoryCloud(NAME)
    assert cloud.imports is not None
    probe = ImportProbe(tmp_path, streams.socket_dir, streams.launch, streams.stop)
    probe.run(cloud, cloud.imports, "default", MIGRATION, patient=patient)


def _nothing_left(scenario: Scenario, tmp_path: Path, streams: InProcessStreams) -> None:
    assert scenario.leftovers(MIGRATION) == []
    assert list((tmp_path / "streams").glob("*")) == []
    assert list(streams.socket_dir.iterdir()) == []


def test_every_byte_of_it_is_imported_and_removed(
    scenario: Scenario, tmp_path: Path, streams: InProcessStreams
) -> None:
    _run(tmp_path, streams)
    asked = [call.method for call in scenario.calls if call.port == "imports"]
    assert asked == ["begin", "try_out", "fill", "give_up"]
    _nothing_left(scenario, tmp_path, streams)


@pytest.mark.parametrize("method", ["begin", "try_out", "fill"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [Conflict, Unavailable])
def test_what_fails_is_raised_and_all_is_removed(
    scenario: Scenario, tmp_path: Path, streams: InProcessStreams, method: str, when: Any, error: type[WhimbrelError]
) -> None:
    scenario.fail("imports", method, lambda: error("it does not"), when=when)
    with pytest.raises(error, match="it does not"):
        _run(tmp_path, streams, patient=True)
    _nothing_left(scenario, tmp_path, streams)


def test_a_cloud_that_still_tries_is_asked_again_about_the_same_volume(
    scenario: Scenario, tmp_path: Path, streams: InProcessStreams
) -> None:
    scenario.fail("imports", "try_out", lambda: NotReady("still at it"), times=None)
    with pytest.raises(NotReady):
        _run(tmp_path, streams, patient=True)
    place = Place(tmp_path, streams.socket_dir, f"{MIGRATION}-probe", "probe")
    assert place.config.exists()
    assert scenario.leftovers(MIGRATION) != []
    scenario.clear()
    _run(tmp_path, streams, patient=True)
    assert len(streams.launched) == 1
    _nothing_left(scenario, tmp_path, streams)


def test_one_that_tries_for_too_long_is_given_up(scenario: Scenario, tmp_path: Path, streams: InProcessStreams) -> None:
    scenario.fail("imports", "try_out", lambda: NotReady("still at it"), times=None)
    with pytest.raises(NotReady):
        _run(tmp_path, streams)
    _nothing_left(scenario, tmp_path, streams)
