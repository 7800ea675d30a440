"""The examples in the documents are real: they load, and they name every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from whimbrel.config.clouds import LibvirtCloud, WhimbrelConfig, load_text
from whimbrel.config.plan import load_plan_text
from whimbrel.config.plan_file import Settings, VmEntry
from whimbrel.model.plan import VmPlan

DOCS = Path(__file__).parents[2] / "docs"


def examples(document: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (DOCS / document).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("text", examples("plan.md"), ids=["smallest", "all keys"])
def test_plan_examples_load(text: str) -> None:
    assert load_plan_text(text, "plan.md").name == "wave-1"


def test_what_the_document_calls_defaults_are_the_models_own() -> None:
    plan = load_plan_text(examples("plan.md")[1], "plan.md").vms[0]
    bare = VmPlan(plan=plan.plan, vm=plan.vm, source=plan.source, target=plan.target)
    for key in ("mode", "site", "disk_format", "rounds", "stop", "verify", "keep_writes", "lanes", "parallel_disks"):
        assert getattr(plan, key) == getattr(bare, key), key
    assert plan.health.timeout_s == bare.health.timeout_s
    assert plan.health.on_failure == bare.health.on_failure


def test_the_plan_document_names_every_key() -> None:
    text = "\n".join(examples("plan.md"))
    for model in (Settings, VmEntry):
        for name, info in model.model_fields.items():
            assert f"{info.alias or name}:" in text, name


def test_the_clouds_example_loads_and_names_every_key() -> None:
    (text,) = examples("whimbrel-yaml.md")
    config = load_text(text, "whimbrel-yaml.md", Path("/etc/whimbrel"))
    assert {cloud.kind for cloud in config.clouds.values()} == {"libvirt", "openstack", "memory"}
    assert config.bandwidth_for("any") == 200e6
    for model in (WhimbrelConfig, LibvirtCloud):
        for name in model.model_fields:
            assert f"{name}:" in text, name
