"""StreamingMigration on in-memory clouds, with real streaming servers between them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.memory import MemoryCloud, Scenario
from tests.stream.streams import until
from tests.workflows.bench import MIB, Before, Orchestrator
from whimbrel.contracts import verbs
from whimbrel.errors import Conflict, Unavailable
from whimbrel.model.progress import Phase
from whimbrel.model.vm import Power
from whimbrel.ports.block import BlockDevice
from whimbrel.stream.protect.change import Change
from workflows.hydrating import pause_s

Run = Callable[..., Any]
MARK = b"written at the target"
MIRROR = {"protect": "mirror"}


def _vm(orchestrator: Orchestrator, name: str = "app01", **traits: Any) -> Before:
    orchestrator.source.add_vm(name, disks=((4 * MIB, "qcow2"), (2 * MIB, "raw")), **traits)
    orchestrator.source.write_disk(name, "vda", 65536, os.urandom(MIB))
    orchestrator.source.write_disk(name, "vdb", 0, os.urandom(MIB))
    return orchestrator.before(name)


def written_by_guest(scenario: Scenario, vm: str, writes: dict[str, list[tuple[int, bytes]]]) -> None:
    """What the guest writes as soon as it runs."""

    def act(ref: str) -> None:
        for disk, places in writes.items():
            for offset, data in places:
                scenario.guest_write(ref, disk, offset, data)

    scenario.when_guest_runs(vm, act)


def _plan(orchestrator: Orchestrator, **changes: Any) -> Any:
    return orchestrator.plan("app01", mode="streaming", **changes)


def test_the_target_ends_on_its_own_disks_with_the_sources_bytes(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        report = await orchestrator.migrate(_plan(orchestrator))
        orchestrator.assert_moved(report, before)
        status = report.status
        assert status.hydrated_at is not None
        assert status.switched_at is not None
        assert [record.mismatches for record in status.verify] == [0, 0]
        assert status.stream is not None
        assert status.stream.missing_bytes == 0

    run(story())


@pytest.mark.parametrize("protect", ["none", "mirror", "journal"])
def test_what_the_guest_writes_meanwhile_is_at_the_target(orchestrator: Orchestrator, run: Run, protect: str) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)], "vdb": [(MIB + 5, MARK)]})

    async def story() -> None:
        report = await orchestrator.migrate(_plan(orchestrator, stream={"protect": protect}))
        assert report.outcome == "completed", report.reason
        expected = {key: bytearray(content) for key, content in before.content.items()}
        expected["vda"][70_000 : 70_000 + len(MARK)] = MARK
        expected["vdb"][MIB + 5 : MIB + 5 + len(MARK)] = MARK
        for key, content in expected.items():
            assert orchestrator.target_disk("app01", key) == bytes(content)
        # The source was never touched, whatever was kept beside it.
        assert orchestrator.before("app01").content == before.content
        orchestrator.assert_nothing_left(report)

    run(story())


@pytest.mark.parametrize("protect", ["mirror", "journal"])
def test_a_rollback_brings_every_write_back(orchestrator: Orchestrator, run: Run, protect: str) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)], "vdb": [(MIB + 5, MARK)]})

    async def story() -> None:
        plan = _plan(orchestrator, stream={"protect": protect}, confirm={})
        started = await orchestrator.start(plan)
        await started.phase(Phase.CONFIRM)
        await started.say(verbs.ROLLBACK)
        report = await started.report()
        orchestrator.assert_given_back(report, before, same_bytes=False)
        now = orchestrator.before("app01").content
        assert now["vda"][70_000 : 70_000 + len(MARK)] == MARK
        assert now["vdb"][MIB + 5 : MIB + 5 + len(MARK)] == MARK
        assert now["vda"][:65_536] == before.content["vda"][:65_536]
        assert report.writes_kept_bytes

    run(story())


@pytest.mark.parametrize("protect", ["mirror", "journal"])
def test_a_shadow_that_dies_as_the_operator_confirms_holds_nobody_up(
    orchestrator: Orchestrator, run: Run, protect: str
) -> None:
    """The guest's write waits for it, and the switch onto its own disks would wait for the write."""
    before = _vm(orchestrator)

    def gone() -> BlockDevice:
        raise Unavailable("the shadow's host is gone for good")

    async def story() -> None:
        # So little may be behind that in mode journal, too, a write waits for the shadow.
        stream = {"protect": protect, "max_lag_bytes": 1}
        started = await orchestrator.start(_plan(orchestrator, stream=stream, confirm={}))
        await started.phase(Phase.CONFIRM)
        server = orchestrator.streams.server("vdb")
        told: list[Exception | None] = []
        assert server.protection is not None
        assert server.protection.drain(60)
        server.protection.shadow.use(gone)
        server.protection.submit(Change("write", 4096, len(MARK), memoryview(MARK), done=told.append))
        await started.say(verbs.CONFIRM)
        report = await started.report()
        assert report.outcome == "completed", report.reason
        assert told == [None]
        orchestrator.assert_nothing_left(report)
        wanted = bytearray(before.content["vdb"])
        wanted[4096 : 4096 + len(MARK)] = MARK
        assert orchestrator.target_disk("app01", "vdb") == bytes(wanted)

    run(story())


def test_a_rollback_without_protection_gives_back_what_was_stopped(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)]})

    async def story() -> None:
        started = await orchestrator.start(_plan(orchestrator, confirm={}))
        await started.phase(Phase.CONFIRM)
        await started.say(verbs.ROLLBACK)
        orchestrator.assert_given_back(await started.report(), before)

    run(story())


def test_writes_can_be_given_up(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)
    written_by_guest(orchestrator.target, "app01", {"vda": [(70_000, MARK)]})

    async def story() -> None:
        started = await orchestrator.start(_plan(orchestrator, stream=MIRROR, confirm={}))
        await started.phase(Phase.CONFIRM)
        await started.say(verbs.ROLLBACK, drop_writes=True)
        orchestrator.assert_given_back(await started.report(), before)

    run(story())


def _at(role: str) -> Callable[[Any], bool]:
    return lambda wanted: wanted.cloud.startswith(role)


DOORS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "volumes": ("volume.ensure", lambda _: True),
    "stop": ("compute.request_stop", _at("src")),
    "point": ("point.open", _at("src")),
    "shadow": ("shadow.open", _at("src")),
    "serve": ("stream.serve", lambda _: True),
    "define": ("compute.ensure_vm", lambda _: True),
    "start": ("compute.start", _at("dst")),
    "health": ("health.check", lambda _: True),
    "hydrate": ("stream.hydrate", lambda _: True),
    "prove": ("stream.prove", lambda _: True),
}


@pytest.mark.parametrize("protect", ["none", "mirror"])
@pytest.mark.parametrize("door", [*DOORS, "switch"])
def test_a_rollback_from_every_door(orchestrator: Orchestrator, run: Run, door: str, protect: str) -> None:
    """Asked for while the act is at its door, and so carried out after it."""
    if (door == "shadow" and protect == "none") or (door == "switch" and protect != "none"):
        pytest.skip("this door is not there")
    before = _vm(orchestrator)

    async def story() -> None:
        activity, fits = DOORS.get(door, ("compute.switch_disks", lambda _: True))
        held = orchestrator.hold(activity, fits=fits)
        started = await orchestrator.start(_plan(orchestrator, stream={"protect": protect}, confirm={}))
        await orchestrator.reached(held)
        await started.say(verbs.ROLLBACK)
        held.open()
        orchestrator.assert_given_back(await started.report(), before)

    run(story())


@pytest.mark.parametrize("door", ["point", "shadow", "serve", "define", "start"])
def test_a_take_over_that_fails_is_taken_back(orchestrator: Orchestrator, run: Run, door: str) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        activity, fits = DOORS[door]
        orchestrator.fail(activity, lambda: Conflict("somebody else has it"), fits=fits)
        started = await orchestrator.start(_plan(orchestrator, stream=MIRROR))
        if door == "start":
            # It may have begun to run: nobody but the operator goes back from here.
            await started.until(lambda now: now.trouble is not None or now.phase is Phase.ROLLING_BACK)
        else:
            await started.held("Conflict")
            assert orchestrator.before("app01").spec.power is Power.RUNNING
            await started.say(verbs.RESUME)
            orchestrator.assert_moved(await started.report(), before)
            return
        orchestrator.assert_given_back(await started.report(), before)

    run(story())


def test_a_source_that_goes_away_is_waited_for(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        orchestrator.fail("stream.hydrate", lambda: Unavailable("the source has been away for 20 s"), times=2)
        started = await orchestrator.start(_plan(orchestrator))
        told = await started.until(lambda now: now.trouble is not None and now.phase is Phase.HYDRATE)
        assert told.trouble is not None
        assert told.trouble.code == "Unavailable"
        orchestrator.assert_moved(await started.report(), before)

    run(story())


def test_a_source_that_dies_now_and_then_is_opened_at_once_each_time() -> None:
    """The pauses grow while it stays away; a loss an hour later is no try that failed."""
    soon, later = timedelta(seconds=5), timedelta(hours=1)
    pauses = [0.0]
    for _ in range(6):
        pauses.append(pause_s(pauses[-1], soon))
    assert pauses[1:] == [2, 4, 8, 16, 30, 30]
    assert pause_s(pauses[-1], later) == 2


def test_pause_and_bandwidth_while_it_hydrates(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        started = await orchestrator.start(_plan(orchestrator, bandwidth_bytes_per_s=20e3))
        await started.phase(Phase.HYDRATE)
        await started.say(verbs.PAUSE)
        server = orchestrator.streams.server()
        await asyncio.to_thread(until, lambda: server.fetcher.paused, "pause of the background")
        missing = server.status()["missing_chunks"]
        await asyncio.sleep(1)
        assert (await started.status()).phase is Phase.HYDRATE
        assert 0 < int(str(server.status()["missing_chunks"])) >= int(str(missing)) - 1
        await started.say(verbs.SET_BANDWIDTH, bytes_per_s=50e6)
        await started.say(verbs.RESUME)
        orchestrator.assert_moved(await started.report(), before)

    run(story())


def test_after_pre_copy_only_the_last_changes_are_streamed(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)

    async def story() -> None:
        plan = _plan(orchestrator, stream={"precopy": True}, rounds={"cutover": "manual", "min_interval_s": 0.2})
        started = await orchestrator.start(plan)
        await started.phase(Phase.ROUNDS)
        orchestrator.source.write_disk("app01", "vda", 2 * MIB, MARK)
        await started.say(verbs.CUTOVER)
        report = await started.report()
        before.content["vda"] = orchestrator.source.read_disk("app01", "vda")
        orchestrator.assert_moved(report, before)
        assert next(record.kind for record in report.status.rounds) == "baseline"
        assert report.status.stream is not None
        # vdb is raw and cannot tell what changed: it is streamed whole.
        fetched = report.status.stream.background_bytes + report.status.stream.demand_bytes
        assert fetched <= 1 * MIB + 8 * 65536

    run(story())


def test_after_a_take_over_taken_back_and_lost_tracking_nothing_is_taken_for_granted(
    orchestrator: Orchestrator, run: Run
) -> None:
    """The stream fetched what the guest had changed; then the guest changes it back, and no bitmap tells."""
    before = _vm(orchestrator)
    source = orchestrator.source

    async def story() -> None:
        rounds = {"cutover": "manual", "min_interval_s": 3600.0, "max_interval_s": 3600.0}
        started = await orchestrator.start(_plan(orchestrator, stream={"precopy": True}, rounds=rounds))
        await started.until(lambda now: now.rounds_done == 2)
        source.guest_write("app01", "vda", 2 * MIB, b"x" * 65536)
        defining = orchestrator.hold("compute.ensure_vm")
        defining.error = lambda: Conflict("somebody else has it")
        await started.say(verbs.CUTOVER)
        await orchestrator.reached(defining)
        server = orchestrator.streams.server()
        await asyncio.to_thread(until, lambda: server.status()["complete"], "end of the hydration")
        path = orchestrator.streams.server().config.target_path
        content = await asyncio.to_thread(Path(path).read_bytes)
        assert content[2 * MIB : 2 * MIB + 65536] == b"x" * 65536
        reading = orchestrator.hold("point.open", fits=_at("src"))
        defining.open()
        await orchestrator.reached(reading)
        place = before.content["vda"][2 * MIB : 2 * MIB + 65536]
        source.guest_write("app01", "vda", 2 * MIB, place)
        source.damage_tracking("app01")
        reading.open()
        compared = await started.until(lambda now: now.rounds_done == 3)
        assert compared.rounds[-1].kind == "full-compare"
        await started.say(verbs.CUTOVER)
        orchestrator.assert_moved(await started.report(), before)

    run(story())


def test_keep_writes_and_qcow2_are_refused_with_what_to_say_instead(orchestrator: Orchestrator) -> None:
    with pytest.raises(ValueError, match=r"stream\.protect"):
        _plan(orchestrator, keep_writes=True)
    with pytest.raises(ValueError, match="raw"):
        _plan(orchestrator, disk_format="qcow2")


def test_a_target_that_cannot_serve_is_refused_before_anything(orchestrator: Orchestrator, run: Run) -> None:
    before = _vm(orchestrator)
    orchestrator.target.set_capabilities(serve_disks=False)

    async def story() -> None:
        report = await orchestrator.migrate(_plan(orchestrator))
        assert report.outcome == "refused"
        assert "stream.capable" in report.reason
        assert orchestrator.before("app01").spec.power is before.spec.power
        assert MemoryCloud(orchestrator.target_name).compute.inventory() == []

    run(story())
