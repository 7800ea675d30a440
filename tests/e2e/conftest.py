"""One installation per session and xdist worker; one guest per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.kvm import KvmLab
from labs.stage import Stage, WorkerProcess
from tests.e2e.installation import Installation, installed, short_name
from tests.e2e.scene import Scene


@pytest.fixture(scope="session")
def installation(kvm_lab: KvmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Temporal dev server and a worker process on the shared lab."""
    with installed(Stage.at(tmp_path_factory.mktemp("stage"), lab=kvm_lab)) as made:
        yield made


@pytest.fixture
def scene(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A guest that is not made yet, and its migrations; everything runs, whatever the test before has killed."""
    installation.make_whole()
    made = Scene(installation, short_name(request))
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
