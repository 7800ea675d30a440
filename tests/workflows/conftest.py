"""One Temporal dev server and one control worker per session; a mover and two clouds per test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from temporalio.client import Client

import activities.probe
from labs.ports import lend_port
from tests.workflows import strikes
from tests.workflows.bench import Orchestrator, control_worker
from whimbrel.contracts.timeouts import COMPENSATION, CUTOVER, TABLE
from whimbrel.runtime.devserver import DevServer

T = TypeVar("T")
SETTINGS = {
    "frontend.WorkflowTimeSkippingEnabled": "true",
    # No test that is not about it gets so far.
    "limit.historyCount.suggestContinueAsNew": "500",
}


class Loop:
    """An event loop in a thread of its own: fixtures and tests share the server's client and worker."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 280.0) -> T:
        """Run a coroutine there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """The session's event loop."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A dev server with our workflows and cloud calls served."""
    server = DevServer(tmp_path_factory.mktemp("temporal"), lend_port(), lend_port(), SETTINGS, bound=True)
    server.start()
    try:
        connected = loop.run(server.ready())
        ended = loop.run(_serve(connected))
        yield connected
        loop.run(ended())
    finally:
        server.stop()


async def _serve(client: Client) -> Callable[[], Coroutine[Any, Any, None]]:
    context = control_worker(client)
    await context.__aenter__()

    async def end() -> None:
        await context.__aexit__(None, None, None)

    return end


@pytest.fixture
def run(loop: Loop) -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine of a test."""
    return loop.run


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once; their number and their ends stay as they are."""
    for timing in [*TABLE.values(), COMPENSATION, CUTOVER]:
        monkeypatch.setattr(timing.retry, "initial_interval", timedelta(milliseconds=20))


@pytest.fixture
def orchestrator(loop: Loop, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orchestrator]:
    """Two new clouds and a mover for them."""
    # The probe watches a VM's writes for three seconds; a moment will do here.
    monkeypatch.setattr(activities.probe, "DIRTY_WATCH_S", 0.05)
    made = Orchestrator(client, tmp_path / "state")

    async def enter() -> Any:
        mover = made.data_worker()
        await mover.__aenter__()
        return mover

    mover = loop.run(enter())
    yield made
    strikes.clear(made.tag)
    loop.run(mover.__aexit__(None, None, None))
