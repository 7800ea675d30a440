"""The committed JSON schemas are those of the models, and agree with the loaders about real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whimbrel.config.clouds import clouds_schema
from whimbrel.config.plan_file import plan_schema

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize(("file", "made"), [("plan.json", plan_schema), ("whimbrel.json", clouds_schema)])
def test_committed_schemas_are_current(file: str, made: Callable[[], str]) -> None:
    assert (SCHEMAS / file).read_text() == made(), f"write it anew: whimbrel schema ... > docs/schema/{file}"


def definitions(schema: dict[str, Any]) -> dict[str, Any]:
    return {schema["title"]: schema, **schema["$defs"]}


@pytest.mark.parametrize("made", [plan_schema, clouds_schema])
def test_no_mapping_takes_unknown_keys(made: Callable[[], str]) -> None:
    for name, definition in definitions(json.loads(made())).items():
        if "properties" in definition:
            assert definition["additionalProperties"] is False, name


def test_the_schema_speaks_the_files_names() -> None:
    schema = json.loads(plan_schema())
    assert set(schema["properties"]) >= {
        "version",
        "name",
        "source",
        "target",
        "networks",
        "storage",
        "defaults",
        "vms",
    }
    assert set(schema["required"]) == {"version", "name", "source", "target", "vms"}
    rounds = schema["$defs"]["RoundsSection"]["properties"]
    assert "outage_budget" in rounds
    assert "outage_budget_s" not in json.dumps(schema)
    assert schema["properties"]["name"]["pattern"].startswith("^[A-Za-z0-9]")
    assert schema["$defs"]["Settings"]["properties"]["bandwidth"]["description"].startswith("Limit of one VM")


def test_the_clouds_schema_tells_kinds_apart() -> None:
    schema = json.loads(clouds_schema())
    kinds = next(iter(schema["properties"]["clouds"]["patternProperties"].values()))["discriminator"]["mapping"]
    assert set(kinds) == {"libvirt", "openstack", "memory"}
