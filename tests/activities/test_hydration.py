"""Watching streaming servers: started again, waited for, yielding, complete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import CancelledError
from temporalio.testing import ActivityEnvironment

from activities import hydration
from activities.hydration import Hydration
from tests.stream.streams import CHUNK, PATIENCE_S, config_for, make_source, until
from tests.workflows.streams import InProcessStreams
from whimbrel.contracts.heartbeat import StreamMark
from whimbrel.contracts.stream_io import HydrateInput
from whimbrel.errors import QuotaExceeded, Unavailable
from whimbrel.model.plan import StreamPolicy
from whimbrel.model.stream import StreamFigures
from whimbrel.stream.place import Place

SIZE = 64 * CHUNK


@pytest.fixture
def streams() -> Iterator[InProcessStreams]:
    """Servers of this process."""
    made = InProcessStreams()
    yield made
    made.close()


def _place(tmp_path: Path, streams: InProcessStreams, disk: str = "vda", **more: Any) -> Place:
    place = Place(tmp_path, streams.socket_dir, "0123456789", disk)
    make_source(tmp_path / f"{disk}.src", SIZE)
    config = config_for(tmp_path, SIZE).model_copy(
        update={
            **more,
            "target_path": str(tmp_path / f"{disk}.raw"),
            "map_stem": str(place.map_stem),
            "control_path": str(place.control),
            "source": config_for(tmp_path, SIZE).source.model_copy(update={"path": str(tmp_path / f"{disk}.src")}),
            "listen": (config_for(tmp_path, SIZE).listen[0].model_copy(update={"unix_path": str(place.nbd)}),),
        }
    )
    place.write_config(config)
    return place


def _run(work: Callable[[], Any]) -> Any:
    return ActivityEnvironment().run(work)


def _job(*disks: str, **more: Any) -> HydrateInput:
    return HydrateInput(migration="0123456789", disks=disks, policy=StreamPolicy(), **more)


def test_two_disks_arrive_and_their_figures_are_one(tmp_path: Path, streams: InProcessStreams) -> None:
    places = [_place(tmp_path, streams, disk) for disk in ("vda", "vdb")]
    beats: list[Any] = []

    def work() -> StreamFigures:
        return Hydration(_job("vda", "vdb"), places, streams.launch).run()

    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.extend(details)
    figures = environment.run(work)
    assert figures.disks == 2
    assert figures.total_bytes == 2 * SIZE
    assert figures.missing_bytes == 0
    assert (beats[-1].done_bytes, beats[-1].total_bytes) == (2 * SIZE, 2 * SIZE)
    assert beats[-1].stage == "hydrating"
    for disk in ("vda", "vdb"):
        assert (tmp_path / f"{disk}.raw").read_bytes() == (tmp_path / f"{disk}.src").read_bytes()


def test_without_background_only_the_guest_fetches(tmp_path: Path, streams: InProcessStreams) -> None:
    place = _place(tmp_path, streams, bandwidth_bytes_per_s=10e3)
    environment = ActivityEnvironment()
    worker = threading.Thread(
        target=lambda: environment.run(
            lambda: _expect_cancel(Hydration(_job("vda", background=False), [place], streams.launch))
        )
    )
    worker.start()
    try:
        until(lambda: streams.running, "the server")
        until(lambda: streams.server().fetcher.paused, "the pause of its background")
        worker.join(1.0)
        assert worker.is_alive()
        status = streams.server().status()
        assert status["background"]["paused"]  # type: ignore[index]
        assert status["missing_chunks"]
    finally:
        environment.cancel()
        worker.join(PATIENCE_S)
    assert not worker.is_alive()


def _expect_cancel(watching: Hydration) -> None:
    with pytest.raises(CancelledError):
        watching.run()


def _nothing() -> None:
    pass


class Scripted:
    """A server that answers as it is told."""

    def __init__(self, **status: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.launched = 0
        self.dead = False
        self.looks = 0
        self.at_look: dict[int, Callable[[], None]] = {}
        """What happens just before the look of that number is answered."""
        self.at_window: Callable[[int | None], None] = lambda _bytes: None
        """What happens when the window is set."""
        self.status: dict[str, Any] = {
            "pid": 1,
            "size_bytes": SIZE,
            "chunk_bytes": CHUNK,
            "missing_chunks": 10,
            "written_chunks": 0,
            "host_crashes": 0,
            "source": {"away_s": None, "error": None},
            "target_error": None,
            "statistics": {
                "hits": 1, "misses": 1, "demand_bytes": 0, "background_bytes": 0,
                "demand_bytes_per_s": 0, "background_bytes_per_s": 0, "miss_latency": {"recent_p99_ms": None},
            },
            **status,
        }  # fmt: skip

    def ask(self, _path: Path, verb: str, **words: Any) -> dict[str, Any]:
        """The control socket."""
        if verb == "status":
            self.looks += 1
            self.at_look.pop(self.looks, _nothing)()
        if self.dead:
            raise Unavailable("nobody there")
        if verb == "status":
            return self.status
        self.asked.append((verb, words))
        if verb == "set-window":
            self.at_window(words["bytes"])
        return {}

    def launch(self, _path: Path) -> None:
        """The launcher."""
        self.launched += 1
        self.dead = False
        self.status = {**self.status, "pid": self.status["pid"] + 1}

    def finish(self) -> None:
        """Everything has arrived."""
        self.status = {**self.status, "missing_chunks": 0}

    def slow(self, milliseconds: float | None) -> None:
        """Misses of the last seconds."""
        figures = {**self.status["statistics"], "miss_latency": {"recent_p99_ms": milliseconds}}
        self.status = {**self.status, "statistics": figures}


def _scripted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Scripted, policy: StreamPolicy, marks: list[StreamMark]
) -> Callable[[], StreamFigures]:
    monkeypatch.setattr(hydration, "ask", script.ask)
    monkeypatch.setattr(hydration, "LOOK_S", 0.02)
    monkeypatch.setattr(hydration, "CALM_S", 0.1)
    place = Place(tmp_path, tmp_path, "m", "vda")
    job = HydrateInput(migration="m", disks=("vda",), policy=policy, source_patience_s=5.0)

    def work() -> StreamFigures:
        watching = Hydration(
            job, [place], script.launch, notify_stream=lambda _workflow, _run, mark: marks.append(mark)
        )
        try:
            return watching.run()
        finally:
            watching.close()

    return work


def test_a_dead_server_is_started_again_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = Scripted()
    work = _scripted(monkeypatch, tmp_path, script, StreamPolicy(), [])
    script.at_look = {4: lambda: setattr(script, "dead", True), 8: script.finish}
    figures = _run(work)
    assert script.launched == 1
    assert figures.server_starts == 1


def test_servers_that_were_started_again_share_the_limit_as_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By itself each would begin with all of it, as it was when the streams were made."""
    script = Scripted()
    monkeypatch.setattr(hydration, "ask", script.ask)
    monkeypatch.setattr(hydration, "LOOK_S", 0.02)
    job = _job("vda", "vdb", bandwidth_bytes_per_s=100.0)
    places = [Place(tmp_path, tmp_path, "m", disk) for disk in job.disks]
    script.at_look = {5: lambda: setattr(script, "dead", True), 10: script.finish}
    figures = _run(lambda: Hydration(job, places, script.launch).run())
    assert figures.server_starts == 2
    assert [words for verb, words in script.asked if verb == "set-bandwidth"] == [{"bytes_per_s": 50.0}] * 4


def test_what_a_disk_that_has_arrived_leaves_of_the_limit_is_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripts = {disk: Scripted() for disk in ("vda", "vdb", "vdc")}
    places = {disk: Place(tmp_path, tmp_path, "m", disk) for disk in scripts}
    by_path = {places[disk].control: script for disk, script in scripts.items()}
    monkeypatch.setattr(hydration, "ask", lambda path, verb, **words: by_path[path].ask(path, verb, **words))
    monkeypatch.setattr(hydration, "LOOK_S", 0.02)
    scripts["vda"].at_look = {4: scripts["vda"].finish, 12: scripts["vdc"].finish}
    scripts["vdb"].at_look = {8: scripts["vdb"].finish}
    job = _job(*scripts, bandwidth_bytes_per_s=120.0)
    _run(lambda: Hydration(job, list(places.values()), scripts["vda"].launch).run())
    told = {
        disk: [words["bytes_per_s"] for verb, words in script.asked if verb == "set-bandwidth"]
        for disk, script in scripts.items()
    }
    assert told == {"vda": [40.0], "vdb": [40.0, 60.0], "vdc": [40.0, 60.0, 120.0]}


def test_slow_misses_make_the_background_yield_until_they_are_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, marks = Scripted(), list[StreamMark]()
    work = _scripted(monkeypatch, tmp_path, script, StreamPolicy(miss_p99_s=0.05, yield_after_s=0.2), marks)
    script.slow(80.0)
    script.at_window = lambda limit: script.finish() if limit is None else script.slow(4.0)
    _run(work)
    windows = [words["bytes"] for verb, words in script.asked if verb == "set-window"]
    assert windows == [hydration.YIELD_WINDOW_BYTES, None]
    assert [mark.slow for mark in marks] == [True, False]


def test_a_moment_of_slow_misses_is_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, marks = Scripted(), list[StreamMark]()
    work = _scripted(monkeypatch, tmp_path, script, StreamPolicy(miss_p99_s=0.05, yield_after_s=3600.0), marks)
    script.slow(80.0)
    script.at_look = {10: script.finish}
    _run(work)
    assert marks == []
    assert not [verb for verb, _ in script.asked if verb == "set-window"]


def test_an_end_while_yielding_gives_the_window_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = Scripted()
    work = _scripted(monkeypatch, tmp_path, script, StreamPolicy(miss_p99_s=0.05, yield_after_s=0.05), [])
    script.slow(80.0)
    script.at_window = lambda limit: None if limit is None else script.finish()
    _run(work)
    assert [words["bytes"] for verb, words in script.asked if verb == "set-window"][-1] is None


@pytest.mark.parametrize("end", ["source", "protect"])
def test_an_end_that_stays_away_ends_the_attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str) -> None:
    away = {"away_s": 6.0, "error": "Unavailable: connection refused"}
    script = Scripted(**{end: away})
    with pytest.raises(Unavailable, match="shadow" if end == "protect" else "source"):
        _run(_scripted(monkeypatch, tmp_path, script, StreamPolicy(), []))


def test_a_full_target_asks_the_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = Scripted(target_error="no space left on device")
    with pytest.raises(QuotaExceeded, match="no space left") as full:
        _run(_scripted(monkeypatch, tmp_path, script, StreamPolicy(), []))
    assert "make room" in full.value.action
