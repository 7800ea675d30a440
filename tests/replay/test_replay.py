"""Histories of earlier migrations replay on today's workflows: a migration that runs survives a new version."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

import worker
from tests.replay.record import HISTORIES, STORIES
from whimbrel.runtime.connect import DATA_CONVERTER
from whimbrel.runtime.sandbox import runner

FILES = sorted(HISTORIES.glob("*.json.gz"))


def _replay(text: str) -> Exception | None:
    async def story() -> Exception | None:
        # In debug mode nobody takes a machine that is busy for 2 s for a deadlock.
        replayer = Replayer(
            workflows=worker.WORKFLOWS, workflow_runner=runner(), data_converter=DATA_CONVERTER, debug_mode=True
        )
        history = WorkflowHistory.from_json("recorded", text)
        return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure

    return asyncio.run(story())


def test_every_story_is_recorded() -> None:
    recorded = {path.name.rpartition("-")[0] for path in FILES}
    assert recorded == set(STORIES)
    assert len(FILES) > len(STORIES), "a history that was continued as new has several runs"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_replays(path: Path) -> None:
    failure = _replay(gzip.decompress(path.read_bytes()).decode())
    assert failure is None, failure


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_histories_stay_small(path: Path) -> None:
    assert path.stat().st_size < 128 << 10
    assert len(json.loads(gzip.decompress(path.read_bytes()))["events"]) < 1000


def test_a_replay_that_differs_is_noticed() -> None:
    """The check can fail: one activity's name changed in a history is found."""
    text = gzip.decompress((HISTORIES / "cold-0.json.gz").read_bytes()).decode()
    assert isinstance(_replay(text.replace('"volume.ensure"', '"volume.make"')), NondeterminismError)
