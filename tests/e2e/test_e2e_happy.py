"""Whole migrations without a fault."""

from __future__ import annotations

import json

import pytest

from labs.stage import WorkerProcess
from tests.e2e.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(600)]


def test_incremental_of_two_disks(scene: Scene, fresh_worker: WorkerProcess) -> None:
    scene.boot("qcow2", "qcow2")
    running = scene.migrate()
    running.phase(Phase.CONFIRM)
    assert not scene.guest.is_running("a")
    report = scene.confirm(running)
    scene.moved(running, report)
    kinds = [record.kind for record in report.status.rounds]
    assert kinds[0] == "baseline"
    assert kinds[-1] == "final"
    assert set(kinds[1:-1]) == {"delta"}
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes
    assert fresh_worker.stop() == 0
    lines = [json.loads(line) for line in fresh_worker.log.read_text().splitlines()]
    assert lines[-1]["event"] == "worker.stopped"
    assert [line for line in lines if "Traceback" in json.dumps(line) or line["level"] in {"error", "critical"}] == []


def test_cold_of_a_raw_disk(scene: Scene) -> None:
    scene.boot("raw")
    running = scene.migrate("cold")
    report = scene.confirm(running)
    scene.moved(running, report)
    assert [record.kind for record in report.status.rounds] == ["baseline"]
    assert any(record.kind == "final" for record in scene.boots()[0].records)


@pytest.mark.slow
@pytest.mark.parametrize("formats", [("raw",), ("qcow2", "raw")], ids="-".join)
def test_incremental_of_disks_without_tracking(scene: Scene, formats: tuple[str, ...]) -> None:
    scene.boot(*formats)
    running = scene.migrate(rounds={"cutover": "manual"})
    running.rounds(3)
    running.say("cutover")
    report = scene.confirm(running)
    scene.moved(running, report)
    baseline, *deltas = report.status.rounds
    assert len(deltas) >= 3
    assert all(record.sent_bytes < baseline.sent_bytes / 2 for record in deltas)


@pytest.mark.slow
def test_cold_of_two_disks_compared_before_the_boot(scene: Scene) -> None:
    scene.boot("qcow2", "qcow2")
    running = scene.migrate("cold", verify={"when": "before_boot"})
    scene.moved(running, scene.confirm(running))


@pytest.mark.slow
@pytest.mark.parametrize(("form", "wanted"), [("raw", "qcow2"), ("qcow2", "raw")])
def test_incremental_into_another_format(scene: Scene, form: str, wanted: str) -> None:
    scene.boot(form)
    running = scene.migrate(disk_format=wanted)
    scene.moved(running, scene.confirm(running))
    first = scene.guest.disk_paths("b")["vda"].open("rb").read(4)
    assert (first == b"QFI\xfb") == (wanted == "qcow2")
