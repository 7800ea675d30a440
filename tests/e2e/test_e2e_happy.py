"""Whole migrations without a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.scene import Scene
from whimbrel.model.progress import Phase

pytestmark = [pytest.mark.lab, pytest.mark.e2e, pytest.mark.timeout(240)]


def test_incremental_of_two_disks(scene: Scene, logs_of_this_test: Path) -> None:
    scene.boot("qcow2", "qcow2")
    running = scene.migrate()
    running.phase(Phase.CONFIRM)
    assert not scene.guest.is_running("a")
    report = scene.confirm(running)
    scene.moved(running, report)
    assert report.status.rounds[0].kind == "baseline"
    assert report.status.rounds_done >= 2
    assert report.status.rounds[-1].kind == "final"
    assert report.status.rounds[-1].sent_bytes < report.status.rounds[0].sent_bytes
    lines = [json.loads(line) for line in logs_of_this_test.read_text().splitlines()]
    assert lines
    assert [line for line in lines if "Traceback" in json.dumps(line) or line.get("level") == "error"] == []
