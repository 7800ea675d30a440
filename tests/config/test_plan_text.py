"""What ``whimbrel plan`` writes: readable back, with reasons, and never with a mapping that was only guessed at."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.config.plan import load_plan_text
from whimbrel.config.plan_text import dump_plan, suggest
from whimbrel.config.problem import InvalidFile
from whimbrel.contracts.migration import VmSummary


def vm(name: str, **traits: object) -> VmSummary:
    given_: dict[str, object] = {
        "name": name, "ref": f"ref-{name}", "power": "running", "vcpus": 2, "memory_bytes": 1 << 30,
        "disk_bytes": 10 << 30, "disks": 1, "pools": ("default",), "networks": ("lan",),
        "suggested": "incremental", "why": "all disks can be tracked",
    }  # fmt: skip
    return VmSummary.model_validate({**given_, **traits})


def dump(vms: list[VmSummary], networks: list[str], pools: list[str]) -> str:
    return dump_plan(
        name="wave-1", source="kvm-a", target="kvm-b", vms=vms, target_networks=networks, target_pools=pools
    )


def test_what_is_written_can_be_loaded_and_says_why() -> None:
    text = dump([vm("web"), vm("db", suggested="cold", why="switched off", disks=2)], ["lan"], ["default", "fast"])
    loaded = load_plan_text(text, "p.yaml")
    assert [(p.vm, p.mode, p.networks, p.storage) for p in loaded.vms] == [
        ("web", "incremental", {"lan": "lan"}, {"default": "default"}),
        ("db", "cold", {"lan": "lan"}, {"default": "default"}),
    ]
    assert text.startswith("# yaml-language-server: $schema=")
    assert "mode: incremental  # all disks can be tracked" in text
    assert "mode: cold  # switched off" in text
    assert "# running, 2 vCPU, 1GiB memory, 2 disks 10GiB" in text
    assert "suggested: 1 cold, 1 incremental" in text


def test_hints_in_comments_are_valid_once_uncommented() -> None:
    text = dump([vm("web")], ["lan"], ["default"])
    uncommented = "\n".join(
        line.replace("# ", "", 1) if line.startswith("  # ") else line for line in text.splitlines()
    )
    plan = load_plan_text(uncommented, "p.yaml").vms[0]
    assert plan.confirm.then == "auto_confirm"
    assert plan.window.opens_at is not None
    assert plan.bandwidth_bytes_per_s == 50e6


def test_a_mapping_that_cannot_be_guessed_is_left_empty_and_refused() -> None:
    text = dump([vm("web", networks=("dmz",))], ["lan", "wan"], ["default"])
    assert "the target has: lan, wan" in text
    with pytest.raises(InvalidFile) as caught:
        load_plan_text(text, "p.yaml")
    assert [p.loc for p in caught.value.problems] == [("networks", "dmz")]


def test_suggestions() -> None:
    assert suggest(["b", "a", "a"], ["a", "c"]) == {"a": "a", "b": None}
    assert suggest(["b"], ["c"]) == {"b": "c"}
    assert suggest([], ["c"]) == {}


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True), st.text(max_size=20))
def test_any_names_survive_writing(names: list[str], why: str) -> None:
    text = dump([vm(name, networks=(name,), why=why) for name in names], names, ["default"])
    written = yaml.safe_load(text)
    assert [entry["name"] for entry in written["vms"]] == names
    assert written["networks"] == {name: name for name in names}
    assert {entry["mode"] for entry in written["vms"]} == {"incremental"}
