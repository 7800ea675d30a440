"""Records the histories that ``test_replay`` replays: ``python -m tests.replay.record [STORY...]``.

Run it after a deliberate change of the workflows, and say in the commit why running migrations survive the change (or
that they must end first).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import activities.probe
from labs.ports import lend_port
from tests.workflows.bench import MIB, Migrated, Orchestrator, control_worker
from tests.workflows.sharing import share, shared_plan
from whimbrel.contracts import verbs
from whimbrel.errors import BaseLost, Conflict, Unavailable
from whimbrel.model.facts import NetworkFacts
from whimbrel.model.progress import Phase
from whimbrel.runtime.devserver import DevServer
from whimbrel.runtime.exits import run_and_leave

HISTORIES = Path(__file__).parent / "histories"
MANUAL = {"cutover": "manual", "min_interval_s": 0.0, "max_interval_s": 0.1}
Story = Callable[[Orchestrator], Awaitable[Migrated]]


async def incremental(bench: Orchestrator) -> Migrated:
    """The usual way, with a lost base, a pause and a change of bandwidth."""
    migrated = await bench.start(bench.plan("app01", rounds=MANUAL))
    await migrated.until(lambda now: now.rounds_done == 2)
    bench.source.fail("points", "open", lambda: BaseLost("inconsistent bitmap"))
    await migrated.until(lambda now: now.rounds_done >= 3)
    await migrated.say(verbs.PAUSE)
    await migrated.say(verbs.SET_BANDWIDTH, bytes_per_s=1e9)
    await migrated.say(verbs.RESUME)
    await migrated.say(verbs.CUTOVER)
    return migrated


async def announced(bench: Orchestrator) -> Migrated:
    """A target whose VMs are announced: frozen before the last delta, and once more because tracking was lost in it."""
    bench.target.set_capabilities(start_paused=False, points_outlive_start=True, announces=True)
    bench.source.set_capabilities(rests=True)
    migrated = await bench.start(bench.plan("app01", rounds=MANUAL))
    await migrated.until(lambda now: now.rounds_done == 2)
    bench.source.fail("points", "open", lambda: BaseLost("inconsistent bitmap"), times=2)
    await migrated.say(verbs.CUTOVER)
    return migrated


async def cold(bench: Orchestrator) -> Migrated:
    """The usual way."""
    return await bench.start(bench.plan("app01", mode="cold", verify={"when": "before_boot"}))


async def rollback(bench: Orchestrator) -> Migrated:
    """After the target ran, keeping its writes."""
    migrated = await bench.start(bench.plan("app01", keep_writes=True, confirm={"then": "wait"}))
    await migrated.phase(Phase.CONFIRM)
    bench.target.scribble("app01", "vda", seed=1)
    await migrated.say(verbs.ROLLBACK)
    return migrated


async def retreat(bench: Orchestrator) -> Migrated:
    """A cutover that is taken back, then a second one; a step that is held."""
    bench.fail("compute.ensure_vm", lambda: Conflict("the MAC is taken"))
    bench.fail("volume.ensure", lambda: Conflict("not yet"))
    migrated = await bench.start(bench.plan("app01"))
    await migrated.held()
    await migrated.say(verbs.RESUME)
    await migrated.until(lambda now: now.trouble is not None and now.phase is Phase.ROUNDS)
    await migrated.say(verbs.CUTOVER)
    return migrated


async def cancelled(bench: Orchestrator) -> Migrated:
    """Cancelled in Temporal during a cloud call."""
    held = bench.hold("volume.close_writer")
    migrated = await bench.start(bench.plan("app01"))
    await bench.reached(held)
    await migrated.cancel()
    await migrated.until(lambda now: verbs.ROLLBACK not in now.allowed)
    held.open()
    return migrated


async def continued(bench: Orchestrator) -> Migrated:
    """Continued as new in its rounds."""
    migrated = await bench.start(bench.plan("app01", rounds=MANUAL))
    first = migrated.handle.first_execution_run_id
    while (await migrated.handle.describe()).run_id == first:  # noqa: ASYNC110 - only the server knows
        await asyncio.sleep(0.2)
    await migrated.say(verbs.CUTOVER)
    return migrated


async def dual_attach(bench: Orchestrator) -> Migrated:
    """A handover that is taken back once, then confirmed."""
    bench.fail("handover.adopt", lambda: Conflict("a backup has a disk open"))
    migrated = await bench.start(shared_plan(bench, "shared01", confirm={"then": "wait"}))
    await migrated.held()
    await migrated.say(verbs.RESUME)
    await migrated.phase(Phase.CONFIRM)
    await migrated.say(verbs.CONFIRM)
    return migrated


async def dual_attach_back(bench: Orchestrator) -> Migrated:
    """Rolled back from the confirm gate."""
    migrated = await bench.start(shared_plan(bench, "shared01", confirm={"then": "wait"}))
    await migrated.phase(Phase.CONFIRM)
    await migrated.say(verbs.ROLLBACK)
    return migrated


async def streaming(bench: Orchestrator) -> Migrated:
    """After pre-copy; the source away for a while; switched and confirmed."""
    bench.fail("stream.hydrate", lambda: Unavailable("the source is away"), times=2)
    return await bench.start(bench.plan("app01", mode="streaming", stream={"precopy": True}))


async def streaming_back(bench: Orchestrator) -> Migrated:
    """A take-over that is taken back, then one that is protected and rolled back with the target's writes."""
    bench.fail("stream.serve", lambda: Conflict("the socket is taken"))
    plan = bench.plan("app01", mode="streaming", stream={"protect": "mirror"}, confirm={"then": "wait"})
    migrated = await bench.start(plan)
    await migrated.held()
    await migrated.say(verbs.RESUME)
    await migrated.phase(Phase.CONFIRM)
    await migrated.say(verbs.ROLLBACK)
    return migrated


async def drill(bench: Orchestrator) -> Migrated:
    """A rehearsal that waits for all data."""
    bench.target.add_network(NetworkFacts(name="drill-net", isolated=True))
    return await bench.rehearse(bench.plan("app01", drill={"networks": {"*": "drill-net"}, "hydrate": True}))


STORIES: dict[str, Story] = {
    story.__name__: story
    for story in (
        incremental,
        announced,
        cold,
        rollback,
        retreat,
        cancelled,
        continued,
        dual_attach,
        dual_attach_back,
        streaming,
        streaming_back,
        drill,
    )
}


def anonymous(history: str) -> str:
    """A history without the machine that it was recorded on."""

    def clean(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: clean(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        return "recorder" if name in {"identity", "stackTrace"} else value

    return json.dumps(clean(json.loads(history)), separators=(",", ":"))


async def record(name: str, story: Story, directory: Path) -> None:
    """Run one story to its end and keep the history of every run of it."""
    server = DevServer(directory / name, lend_port(), lend_port(), {"limit.historyCount.suggestContinueAsNew": "250"})
    server.start()
    try:
        client = await server.ready()
        bench = Orchestrator(client, directory / name / "state")
        bench.source.add_vm("app01", disks=((MIB, "qcow2"), (MIB, "raw")))
        bench.source.write_disk("app01", "vda", 0, os.urandom(65536))
        share(bench, "shared01")
        async with control_worker(client), bench.data_worker():
            migrated = await story(bench)
            await migrated.report()
            run_id, number = migrated.handle.first_execution_run_id, 0
            while run_id:
                history = await client.get_workflow_handle(migrated.handle.id, run_id=run_id).fetch_history()
                packed = gzip.compress(anonymous(history.to_json()).encode(), mtime=0)
                (HISTORIES / f"{name}-{number}.json.gz").write_bytes(packed)
                last = history.events[-1].workflow_execution_continued_as_new_event_attributes
                run_id, number = last.new_execution_run_id, number + 1
    finally:
        server.stop()


async def main() -> int:
    """Record all stories, or those that the command line names."""
    activities.probe.DIRTY_WATCH_S = 0.05
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for name, story in STORIES.items():
            if len(sys.argv) > 1 and name not in sys.argv[1:]:
                continue
            await record(name, story, Path(directory))
    return 0


if __name__ == "__main__":
    run_and_leave(main)
