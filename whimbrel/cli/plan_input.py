"""Reads the plan file and, where there is one, ``whimbrel.yaml`` beside it."""

from __future__ import annotations

from pathlib import Path

from whimbrel.cli.output import note
from whimbrel.config.clouds import FILE_NAME, WhimbrelConfig, candidates, find, load
from whimbrel.config.plan import LoadedPlan, load_plan

NO_CONFIG = (
    f"no {FILE_NAME} on this machine: the worker checks the cloud names; site is 'default' where the plan says none"
)


def read_config() -> WhimbrelConfig | None:
    """``whimbrel.yaml``; None when no usual place has one. Raises InvalidFile when it is wrong or named but absent."""
    places = candidates()
    if len(places) > 1 and not any(place.is_file() for place in places):
        return None
    return load(find())


def read_plan(path: Path) -> LoadedPlan:
    """The plan, checked against ``whimbrel.yaml`` if there is one. Raises InvalidFile."""
    config = read_config()
    loaded = load_plan(path, config)
    if config is None:
        note(NO_CONFIG)
    return loaded
