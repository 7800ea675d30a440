"""migrate, status, watch, the verbs and report against a real server with stand-in workflows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from temporalio.client import Client

from tests.cli.conftest import EMPTY_NAMESPACE, Desk
from whimbrel.cli import watch as watch_module
from whimbrel.cli.migration_view import MigrationView, read_views
from whimbrel.contracts.migration import DrillInput
from whimbrel.model.progress import MigrationReport

pytestmark = pytest.mark.timeout(180)


def started(desk: Desk, *vms: str, mode: str = "incremental") -> Path:
    """A plan whose VMs run and can be listed (visibility lags a little behind)."""
    plan = desk.plan(*vms, mode=mode)
    assert desk("migrate", plan).code == 0
    deadline = time.monotonic() + 90
    while len(desk("status", plan.stem, "--json").out) and time.monotonic() < deadline:
        ran = desk("status", plan.stem, "--json")
        if ran.code == 0:
            found = ran.result if isinstance(ran.result, list) else [ran.result]
            if {view["vm"] for view in found} == set(vms):
                return plan
        time.sleep(0.2)
    raise AssertionError("the migrations never showed up in the list")


def until(desk: Desk, target: str, **wanted: object) -> dict[str, object]:
    """The detailed status once it says what is wanted."""
    deadline = time.monotonic() + 90
    while True:
        view: dict[str, object] = desk("status", target, "--json").result
        if all(view[key] == value for key, value in wanted.items()):
            return view
        assert time.monotonic() < deadline, (wanted, view)
        time.sleep(0.2)


def test_migrate_starts_each_once(desk: Desk) -> None:
    plan = desk.plan("web", "db", mode="cold")
    first = desk("migrate", plan, "--json")
    assert [(s["vm"], s["workflow_id"], s["outcome"]) for s in first.result] == [
        ("web", f"vm/{plan.stem}/web", "started"),
        ("db", f"vm/{plan.stem}/db", "started"),
    ]
    again = desk("migrate", plan, "--vm", "db", "--json")
    assert (again.code, [s["outcome"] for s in again.result]) == (0, ["already running"])
    view = until(desk, f"{plan.stem}/db", mode="cold")
    assert view["run_id"] == first.result[1]["run_id"]


@pytest.mark.parametrize("from_copy", [False, True])
def test_a_drill_says_what_it_reads(desk: Desk, from_copy: bool) -> None:
    plan = desk.plan("web")
    ran = desk("drill", plan, *(["--from-copy"] if from_copy else []), "--json")
    assert ran.code == 0
    assert [(s["vm"], s["workflow_id"], s["outcome"]) for s in ran.result] == [
        ("web", f"drill/{plan.stem}/web", "started")
    ]

    async def asked() -> DrillInput:
        handle = desk.server.client.get_workflow_handle(f"drill/{plan.stem}/web")
        events = (await handle.fetch_history()).events
        await handle.terminate()
        payloads = events[0].workflow_execution_started_event_attributes.input.payloads
        (found,) = await desk.server.client.data_converter.decode(payloads, [DrillInput])
        return found  # type: ignore[no-any-return]

    assert desk.server.call(asked()).from_copy is from_copy


def test_the_mode_can_be_overridden(desk: Desk) -> None:
    plan = desk.plan("web")
    assert desk("migrate", plan, "--mode", "cold").code == 0
    assert until(desk, f"{plan.stem}/web")["mode"] == "cold"
    assert desk("migrate", plan, "--mode", "warm").code == 2


def test_dry_run_asks_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    ran = desk("migrate", desk.plan("web"), "--dry-run", "--json")
    assert ran.code == 0
    assert [(s["vm"], s["outcome"], s["plan"]["mode"]) for s in ran.result] == [("web", "dry run", "incremental")]


def test_what_was_completed_is_not_done_again_by_accident(desk: Desk) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    desk("cutover", name)
    assert desk("confirm", name).code == 0
    until(desk, name, state="completed")
    ran = desk("migrate", plan)
    assert ran.code == 1
    assert "--again" in ran.err
    assert desk("migrate", plan, "--again", "--json").result[0]["outcome"] == "started"


def test_the_plan_is_checked_against_whimbrel_yaml(desk: Desk) -> None:
    Path("whimbrel.yaml").write_text(
        "version: 1\nclouds: {kvm-a: {kind: memory, site: north}, kvm-c: {kind: memory}}\n"
    )
    plan = desk.plan("web")
    ran = desk("migrate", plan)
    assert ran.code == 2
    assert "target: cloud 'kvm-b' is not in whimbrel.yaml; did you mean kvm-c?" in ran.err
    Path("whimbrel.yaml").write_text(
        "version: 1\nclouds: {kvm-a: {kind: memory, site: north}, kvm-b: {kind: memory}}\n"
    )
    assert desk("migrate", plan, "--dry-run", "--json").result[0]["plan"]["site"] == "north"


def test_status_lists_and_details(desk: Desk) -> None:
    plan = started(desk, "web", "stuck-db")
    listed = desk("status", plan)
    assert listed.code == 0
    rows = {line.split()[0]: line for line in listed.out.splitlines()}
    assert "baseline" in rows[f"{plan.stem}/web"]
    assert "waits for you" in rows[f"{plan.stem}/stuck-db"]
    assert f"{plan.stem}/web" in desk("status").out
    shown = desk("status", f"{plan.stem}/web").out
    for words in ("kvm-a → kvm-b", "outage if cut over now: 17 s", "rounds shrink", "possible now: cutover, sync-now"):
        assert words in shown, words
    stuck = desk("status", plan, "--vm", "stuck-db").out
    assert "waits for you: open writer: pool fast is full" in stuck
    assert "what to do: free space, then resume" in stuck
    assert "choices: resume, rollback" in stuck


def test_running_copies_are_read_from_their_heartbeats(desk: Desk) -> None:
    plan = started(desk, "web")
    deadline = time.monotonic() + 90
    while True:
        view = desk("status", f"{plan.stem}/web", "--json").result
        if view["copies"] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    (copy,) = view["copies"]
    assert (copy["disk"], copy["done_bytes"], copy["total_bytes"], copy["stage"]) == (
        "vda",
        1 << 30,
        4 << 30,
        "copying",
    )
    shown = desk("status", f"{plan.stem}/web").out
    assert "25.0 %" in shown  # the copy's own figure, not the 10 % that the workflow knows
    assert "ETA 1 min 30 s" in shown


def test_a_step_that_is_tried_again_is_shown(desk: Desk) -> None:
    plan = started(desk, "flaky-1")
    deadline = time.monotonic() + 90
    while "volume.ensure is tried again" not in (shown := desk("status", f"{plan.stem}/flaky-1").out):
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    assert "pool for vda is full" in shown
    assert "second line" not in shown


def test_names_of_migrations(desk: Desk) -> None:
    unique = f"vm-{time.monotonic_ns()}"
    plan = started(desk, unique, "o'brien")
    wanted = f"vm/{plan.stem}/{unique}"
    for words in ([f"vm/{plan.stem}/{unique}"], [f"{plan.stem}/{unique}"], [unique], [plan, "--vm", unique]):
        assert desk("status", *words, "--json").result["workflow_id"] == wanted, words
    assert desk("status", plan.stem, "--vm", "o'brien", "--json").result["vm"] == "o'brien"
    assert desk("pause", unique, "--json").result[0]["workflow_id"] == wanted


def test_a_name_in_two_plans_is_refused(desk: Desk) -> None:
    shared = f"vm-{time.monotonic_ns()}"
    one, two = started(desk, shared), started(desk, shared)
    ran = desk("pause", shared, "--json")
    assert (ran.code, ran.error["code"], ran.error["action"]) == (2, "Ambiguous", "write PLAN/VM")
    assert all(f"{plan.stem}/{shared}" in ran.error["message"] for plan in (one, two))


def test_a_plan_with_several_vms_needs_a_word(desk: Desk) -> None:
    plan = started(desk, "web", "db")
    ran = desk("pause", plan)
    assert ran.code == 2
    assert "what to do: name some with --vm, or say --all" in ran.err
    assert {a["message"] for a in desk("pause", plan, "--all", "--json").result} == {"paused"}


def test_a_near_name_is_offered(desk: Desk) -> None:
    plan = started(desk, "web")
    ran = desk("cutover", f"{plan.stem}/wbe", "--json")
    assert (ran.code, ran.error["exit_code"]) == (3, 3)
    assert f"did you mean {plan.stem}/web?" in ran.error["message"]


def test_a_migration_that_never_was(desk: Desk) -> None:
    ran = desk("status", desk.plan("web"))
    assert ran.code == 3
    assert desk("pause", "vm/no/such").code == 3


def test_every_verb_arrives_with_who_and_why(desk: Desk) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    for words, answer in [
        (["pause", name], "paused"),
        (["resume", name], "going on"),
        (["sync-now", name], "a round begins"),
        (["set-bandwidth", name, "50MB/s"], "limit 50000000.0"),
        (["set-bandwidth", name, "none"], "limit None"),
        (["cutover", name, "--reason", "window opened"], "cutting over"),
        (["confirm", name], "confirmed"),
    ]:
        ran = desk(*words)
        assert (ran.code, ran.out) == (0, f"vm/{name}: {answer}\n"), words
    report = desk("report", name, "--json")
    assert "window opened" in report.result["reason"]
    assert "cutover by " in report.result["reason"]


def test_a_refusal_tells_why(desk: Desk) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    ran = desk("confirm", name, "--json")
    assert ran.code == 1
    assert ran.error["code"] == "Refused"
    assert ran.error["message"] == f"vm/{name}: there is nothing to confirm in phase baseline"
    desk("pause", name)
    assert desk("cutover", name).err.splitlines()[0] == f"whimbrel cutover: vm/{name}: it is paused: resume first"


def test_some_refuse_and_some_do_not(desk: Desk) -> None:
    plan = started(desk, "web", "db")
    desk("cutover", plan, "--vm", "web")
    ran = desk("confirm", plan, "--all", "--json")
    assert ran.code == 1
    assert [(a["workflow_id"][-3:].strip("/"), a["accepted"]) for a in ran.result] == [("web", True), ("db", False)]
    assert "nothing to confirm" in ran.err


@pytest.mark.parametrize("verb", ["rollback", "abort"])
def test_taking_it_back(desk: Desk, verb: str) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    assert desk(verb, name).code == 0
    assert until(desk, name, state="completed")["phase"] == "rolled_back"
    assert "left over: volume x on b" in desk("status", name).out
    assert desk("pause", name).err.splitlines()[0].endswith("the migration has ended already")
    assert desk("status", name, "--check").code == 1


@pytest.mark.parametrize("rate", ["0MB/s", "50", "50Mb/s", "fast"])
def test_bad_rates_are_refused_before_anybody_is_asked(desk: Desk, rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    ran = desk("set-bandwidth", "plan/vm", rate)
    assert ran.code == 2
    assert "RATE" in ran.err


def test_watch_to_the_end(desk: Desk) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    desk("cutover", name)
    waiting = desk("watch", name, "--exit-when-waiting")
    assert waiting.code == 6
    assert waiting.out.startswith(f"{name}:  confirm")
    desk("confirm", name)
    ended = desk("watch", plan)
    assert ended.code == 0
    assert ended.out.startswith(f"{name}:  completed")


def test_watch_as_json_is_an_object_per_line(desk: Desk) -> None:
    plan = started(desk, "refused-1", "broken-1")
    ran = desk("watch", plan, "--json")
    assert ran.code == 1
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert {line["command"] for line in lines} == {"watch"}
    last = {line["result"]["vm"]: line["result"] for line in lines}
    assert (last["refused-1"]["state"], last["refused-1"]["phase"]) == ("completed", "refused")
    assert (last["broken-1"]["state"], last["broken-1"]["note"]) == (
        "failed",
        "the source cloud refused the credentials",
    )


def test_migrate_and_watch(desk: Desk) -> None:
    ran = desk("migrate", desk.plan("refused-1"), "--watch")
    assert ran.code == 5
    assert ran.out.splitlines()[0].endswith(": started")
    assert ran.out.splitlines()[-1].endswith("the precheck said no")


def test_a_refusal_by_the_precheck_shows_what_blocks(desk: Desk) -> None:
    plan = started(desk, "refused-1")
    until(desk, f"{plan.stem}/refused-1", state="completed")
    shown = desk("status", f"{plan.stem}/refused-1").out
    assert "outcome: refused\n  block vm.devices: PCI device -> remove it\n" in shown
    assert "net.mtu" not in shown


def test_watch_survives_a_temporal_that_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from temporalio.service import RPCError, RPCStatusCode

    plan = started(desk, "web")
    real, calls = read_views, []

    async def sometimes(client: Client, workflow_ids: list[str]) -> list[MigrationView]:
        calls.append(workflow_ids)
        if len(calls) == 2:
            raise RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b"")
        if len(calls) == 3:
            handle = desk.server.client.get_workflow_handle(f"vm/{plan.stem}/web")
            desk.server.call(handle.terminate("test"))
        return await real(client, workflow_ids)

    monkeypatch.setattr(watch_module, "read_views", sometimes)
    ran = desk("watch", plan)
    assert "Temporal does not answer; this was read" in ran.out
    assert ran.code == 1
    assert ran.out.splitlines()[-1].startswith(f"{plan.stem}/web:  baseline terminated")


def test_without_a_worker_what_temporal_keeps_is_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_NAMESPACE", EMPTY_NAMESPACE)
    plan = desk.plan("web")
    assert desk("migrate", plan).code == 0
    view = desk("status", f"vm/{plan.stem}/web", "--json").result
    assert (view["state"], view["phase"], view["plan"], view["mode"]) == (
        "running",
        "precheck",
        plan.stem,
        "incremental",
    )
    assert view["status"] is None
    assert "no worker answers" in view["note"]
    ran = desk("pause", f"vm/{plan.stem}/web")
    assert ran.code == 1
    assert "no worker polls the task queue 'control'" in ran.err


def test_report_in_three_forms(desk: Desk) -> None:
    plan = started(desk, "web")
    name = f"{plan.stem}/web"
    early = desk("report", name)
    assert early.code == 1
    assert "has not ended (phase baseline)" in early.err
    desk("rollback", name)
    until(desk, name, state="completed")
    page = desk.directory / "report.html"
    shown = desk("report", name, "--html", page)
    assert shown.code == 0
    assert "kvm-a → kvm-b" in shown.out
    text = page.read_text()
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "volume x on b" in text
    report = MigrationReport.model_validate(desk("report", name, "--json").result)
    assert report.outcome == "rolled_back"
    assert desk("report", name, "--html", desk.directory / "no" / "dir.html").code == 2


def test_report_of_one_that_broke(desk: Desk) -> None:
    plan = started(desk, "broken-1")
    ran = desk("report", f"{plan.stem}/broken-1")
    assert ran.code == 1
    assert "ended without a report (failed): the source cloud refused the credentials" in ran.err


def test_nothing_to_list(desk: Desk) -> None:
    ran = desk("status", f"no-such-{time.monotonic_ns()}")
    assert ran.code == 3
