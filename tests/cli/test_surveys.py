"""plan, precheck, doctor, schema, version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import EMPTY_NAMESPACE, Desk
from whimbrel.config.plan import load_plan
from whimbrel.config.plan_file import plan_schema

pytestmark = pytest.mark.timeout(180)


def test_plan_pages_through_the_inventory_and_writes_a_loadable_file(desk: Desk) -> None:
    out = desk.directory / "p.yaml"
    ran = desk("plan", "--source", "kvm-a", "--target", "kvm-b", "--out", out)
    assert ran.code == 0
    assert ran.out == f"{out}: 3 VMs; next: whimbrel precheck {out}\n"
    loaded = load_plan(out)
    assert loaded.name == "kvm-a-to-kvm-b"
    assert [(vm.vm, vm.mode) for vm in loaded.vms] == [("db", "incremental"), ("old", "cold"), ("web", "incremental")]
    assert loaded.vms[0].networks == {"lan": "lan"}
    assert loaded.vms[0].storage == {"default": "fast"}
    assert "mode: cold  # it is switched off" in out.read_text()
    assert [path.name for path in desk.directory.iterdir() if path.name.startswith(".")] == []


def test_an_existing_plan_is_not_overwritten(desk: Desk) -> None:
    out = desk.directory / "p.yaml"
    out.write_text("mine\n")
    words = ("plan", "--source", "kvm-a", "--target", "kvm-b", "--out", out)
    ran = desk(*words)
    assert (ran.code, out.read_text()) == (2, "mine\n")
    assert desk(*words, "--force").code == 0
    assert out.read_text().startswith("# yaml-language-server")


def test_patterns_choose_vms(desk: Desk) -> None:
    ran = desk("plan", "--source", "kvm-a", "--target", "kvm-b", "--vm-pattern", "w*", "--vm-pattern", "d?", "--json")
    assert [vm["name"] for vm in ran.result["vms"]] == ["db", "web"]
    none = desk("plan", "--source", "kvm-a", "--target", "kvm-b", "--vm-pattern", "x*")
    assert none.code == 3
    assert "none of the 3 VMs of 'kvm-a' fits" in none.err


def test_plan_of_a_cloud_that_is_down(desk: Desk) -> None:
    ran = desk("plan", "--source", "down", "--target", "kvm-b", "--json")
    assert ran.code == 1
    assert (ran.error["message"], ran.error["action"]) == ("cloud down: connection refused", "start it")


def test_plan_knows_the_clouds(desk: Desk) -> None:
    Path("whimbrel.yaml").write_text("version: 1\nclouds: {kvm-a: {kind: memory}, kvm-b: {kind: memory}}\n")
    ran = desk("plan", "--source", "kvm_a", "--target", "kvm-b")
    assert ran.code == 2
    assert "did you mean kvm-a?" in ran.err


def test_precheck_tells_findings_and_blocks(desk: Desk) -> None:
    plan = desk.plan("web", "refused-1")
    ran = desk("precheck", plan)
    assert ran.code == 5
    assert "web: can be migrated; 1 of 3 in order; reads 1 MiB/s, writes 2 MiB/s" in ran.out
    assert "refused-1: blocked" in ran.out
    assert "PCI device 01:00.0 is passed through" in ran.out
    assert "→ remove it" in ran.out
    assert "vm.devices" not in desk("precheck", plan, "--vm", "web").out
    assert "1 more could not be judged" in ran.out
    assert "vm.tpm" not in ran.out
    everything = desk("precheck", plan, "--vm", "web", "--all").out
    assert "vm.devices" in everything
    assert "vm.tpm" in everything
    answer = desk("precheck", plan, "--no-probe", "--json")
    assert [(report["vm"], report["blocked"]) for report in answer.result] == [("web", False), ("refused-1", True)]
    assert answer.result[0]["read_bytes_per_s"] is None


def test_a_precheck_that_cannot_run_says_what_to_do(desk: Desk) -> None:
    ran = desk("precheck", desk.plan("broken-1"))
    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == ["whimbrel precheck: host a.example refused", "what to do: start libvirtd"]


def test_an_unknown_vm(desk: Desk) -> None:
    ran = desk("precheck", desk.plan("web"), "--vm", "wbe", "--json")
    assert (ran.code, ran.error["code"]) == (2, "InvalidFile")
    assert "has no VM 'wbe'; did you mean web?" in ran.error["message"]


def states(checks: list[dict[str, str]]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in checks}


def test_doctor_finds_all_in_order(desk: Desk) -> None:
    Path("whimbrel.yaml").write_text("version: 1\nclouds: {kvm-a: {kind: memory}}\n")
    ran = desk("doctor", "--json")
    found = states(ran.result)
    assert ran.code == 0
    for name in (
        "python",
        "packages",
        "whimbrel.yaml",
        "temporal",
        "search attributes",
        "queue control",
        "cloud kvm-a",
    ):
        assert found[name] == "ok", name
    assert "queue data-default" in found


def test_doctor_names_what_is_broken(desk: Desk) -> None:
    Path("whimbrel.yaml").write_text(
        "version: 1\nclouds:\n  down: {kind: memory}\n  far: {kind: memory, site: mars}\n"
        "  host: {kind: libvirt, uri: 'qemu:///system', user: u, credential: {env: WHIMBREL_NOT_SET}}\n"
    )
    ran = desk("doctor", "--json")
    found = {check["name"]: check for check in ran.result}
    assert ran.code == 1
    assert found["cloud down"]["state"] == "fail"
    assert found["cloud down"]["action"] == "start it"
    assert found["queue data-mars"]["state"] == "fail"
    assert found["cloud far"]["state"] == "ok"
    assert found["cloud host, on this machine"]["state"] == "warn"
    assert "WHIMBREL_NOT_SET holds no secret" in found["cloud host, on this machine"]["found"]


def test_doctor_with_a_bad_file_and_no_worker(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_NAMESPACE", EMPTY_NAMESPACE)
    Path("whimbrel.yaml").write_text("version: 1\nclouds: {a: {kind: libvirt}}\nsitee: x\n")
    ran = desk("doctor", "--json")
    found = [(check["name"], check["state"], check["found"]) for check in ran.result]
    assert ran.code == 1
    assert ("whimbrel.yaml", "fail", "whimbrel.yaml:2: clouds.a.uri: is missing") in found
    assert ("whimbrel.yaml", "fail", "whimbrel.yaml:3: sitee: unknown key; did you mean site?") in found
    assert ("queue control", "fail", "no worker polls it") in found


def test_schema_is_the_models(desk: Desk) -> None:
    assert desk("schema", "plan").out == plan_schema()
    assert json.loads(desk("schema", "clouds").out)["title"] == "whimbrel.yaml"
    assert desk("schema", "plans").code == 2


def test_version(desk: Desk) -> None:
    assert desk("version", "--json").result["temporalio"] == "1.35.0"
    assert "whimbrel" in desk("version").out


def test_every_command_takes_json_and_help(desk: Desk) -> None:
    listed = desk("--help").out
    commands = [
        line.split()[0]
        for line in listed.split("Commands:")[1].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert {"plan", "precheck", "migrate", "status", "watch", "cutover", "pause", "resume", "sync-now", "set-bandwidth",
            "confirm", "rollback", "abort", "report", "doctor", "schema",
            "mover-image", "version"} <= set(commands)  # fmt: skip
    for command in commands:
        shown = desk(command, "--help")
        assert shown.code == 0
        assert "--json" in shown.out, command
