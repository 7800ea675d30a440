"""StreamingMigration into a cloud whose storage imports the disks, over real HTTP from real streaming servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.memory.imports import imports
from tests.workflows.bench import MIB, Before, Orchestrator
from tests.workflows.test_streaming import written_by_guest
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.progress import Phase
from whimbrel.model.vm import Power
from whimbrel.stream.control import ask

Run = Callable[..., Any]
MARK = b"written at the target"


def _vm(orchestrator: Orchestrator) -> Before:
    orchestrator.target.set_capabilities(imports=True, start_paused=False, shadows=False)
    orchestrator.source.add_vm("app01", disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")))
    orchestrator.source.write_disk("app01", "vda", 65536, os.urandom(MIB))
    orchestrator.source.write_disk("app01", "vdb", 0, os.urandom(MIB))
    return orchestrator.before("app01")


def _plan(orchestrator: Orchestrator, **changes: Any) -> Any:
    return orchestrator.plan("app01", mode="streaming", **changes)


def test_what_the_guest_writes_meanwhile_is_at_the_target(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)], "vdb": [(MIB + 5, MARK)]})

    async def story() -> None:
        report = await orchestrator.migrate(_plan(orchestrator))
        assert report.outcome == "completed", report.reason
        expected = {key: bytearray(content) for key, content in before.content.items()}
        expected["vda"][70_000 : 70_000 + len(MARK)] = MARK
        expected["vdb"][MIB + 5 : MIB + 5 + len(MARK)] = MARK
        for key, content in expected.items():
            assert orchestrator.target_disk("app01", key) == bytes(content)
            assert not imports(orchestrator.target.disk("app01", key)), "nothing asks the source any more"
        assert [(record.mode, record.mismatches) for record in report.status.verify] == [("full", 0)] * 2
        assert sum(r.compared_bytes + r.skipped_zero_bytes for r in report.status.verify) == 6 * MIB
        assert orchestrator.before("app01").content == before.content
        orchestrator.assert_nothing_left(report)

    run(story())


@pytest.mark.parametrize("drop", [False, True])
def test_a_rollback_brings_every_write_back(orchestrator: Orchestrator, run: Run, drop: bool) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)], "vdb": [(MIB + 5, MARK)]})

    async def story() -> None:
        started = await orchestrator.start(_plan(orchestrator, confirm={}))
        await started.phase(Phase.CONFIRM)
        await started.say(verbs.ROLLBACK, drop_writes=drop)
        report = await started.report()
        orchestrator.assert_given_back(report, before, same_bytes=drop)
        if not drop:
            now = orchestrator.before("app01").content
            assert now["vda"][70_000 : 70_000 + len(MARK)] == MARK
            assert now["vdb"][MIB + 5 : MIB + 5 + len(MARK)] == MARK
            assert now["vda"][:65_536] == before.content["vda"][:65_536]

    run(story())


DOORS = {
    "serve": "stream.serve",
    "begin": "import.begin",
    "define": "compute.ensure_vm",
    "health": "health.check",
    "hydrate": "stream.hydrate",
    "fill": "import.fill",
    "compare": "compare.disk",
    "switch": "compute.switch_disks",
}


@pytest.mark.parametrize("door", DOORS)
def test_a_rollback_from_every_door(orchestrator: Orchestrator, run: Run, door: str) -> None:
    """Asked for while the act is at its door, and so carried out after it."""
    before = _vm(orchestrator)

    async def story() -> None:
        held = orchestrator.hold(DOORS[door])
        started = await orchestrator.start(_plan(orchestrator, confirm={}))
        await orchestrator.reached(held)
        await started.say(verbs.ROLLBACK)
        held.open()
        orchestrator.assert_given_back(await started.report(), before)

    run(story())


@pytest.mark.parametrize("door", ["serve", "begin", "define"])
def test_a_take_over_that_fails_is_taken_back(orchestrator: Orchestrator, run: Run, door: str) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        orchestrator.fail(DOORS[door], lambda: Conflict("somebody else has it"))
        started = await orchestrator.start(_plan(orchestrator))
        await started.held("Conflict")
        assert orchestrator.before("app01").spec.power is Power.RUNNING
        await started.say(verbs.RESUME)
        orchestrator.assert_moved(await started.report(), before)

    run(story())


def test_an_import_that_stops_goes_on(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        orchestrator.fail("import.fill", lambda: Unavailable("the import stopped"), times=3)
        orchestrator.assert_moved(await orchestrator.migrate(_plan(orchestrator)), before)

    run(story())


def test_the_bandwidth_holds_for_the_import_too(
    orchestrator: Orchestrator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volumes are filled one after the other, so each may have all of it."""
    before = _vm(orchestrator)
    told: list[dict[str, object]] = []

    def asked(path: Path, verb: str, **arguments: object) -> dict[str, Any]:
        if verb == "set-bandwidth":
            told.append(arguments)
        return ask(path, verb, **arguments)

    monkeypatch.setattr("activities.imports.ask", asked)

    async def story() -> None:
        orchestrator.assert_moved(await orchestrator.migrate(_plan(orchestrator, bandwidth_bytes_per_s=50e6)), before)
        assert told == [{"bytes_per_s": 50e6}] * 2

    run(story())


def test_the_address_is_in_no_history(orchestrator: Orchestrator, run: Run) -> None:
    _vm(orchestrator)

    async def story() -> None:
        held = orchestrator.hold("compute.ensure_vm")
        started = await orchestrator.start(_plan(orchestrator))
        await orchestrator.reached(held)
        tokens = [path.read_text() for path in orchestrator.state_dir.glob("streams/*/*.token")]
        held.open()
        await started.report()
        told = (await started.handle.fetch_history()).to_json()
        assert len(tokens) == 2
        assert not any(token in told for token in tokens)

    run(story())


@pytest.mark.parametrize("stream", [{"protect": "mirror"}, {"precopy": True}])
def test_what_an_import_cannot_is_refused(orchestrator: Orchestrator, run: Run, stream: dict[str, Any]) -> None:
    _vm(orchestrator)

    async def story() -> None:
        report = await orchestrator.migrate(_plan(orchestrator, stream=stream))
        assert report.outcome == "refused"
        assert "stream.capable" in report.reason

    run(story())
