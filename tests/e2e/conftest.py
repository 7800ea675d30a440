"""One installation per session and xdist worker; one guest per test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from labs.kvm import KvmLab
from labs.stage import Stage, WorkerProcess
from tests.e2e.installation import Installation
from tests.e2e.scene import Scene


@pytest.fixture(scope="session")
def installation(kvm_lab: KvmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Temporal dev server and a worker process on the shared lab."""
    made = Installation(Stage.at(tmp_path_factory.mktemp("stage"), lab=kvm_lab))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def scene(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A guest that is not made yet, and its migrations; everything runs, whatever the test before has killed."""
    installation.make_whole()
    made = Scene(installation, _short(request.node.name))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def fresh_worker(installation: Installation) -> WorkerProcess:
    """The only worker that runs, with a log that nobody wrote to before."""
    for worker in installation.stage.workers:
        worker.stop()
    return installation.start_worker()


def _short(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("test_")).strip("-")[:20]
