"""Search attributes, typed once, upserted only when a value changes."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from whimbrel.contracts.names import SEARCH_ATTRIBUTES

_MAKERS: dict[str, Any] = {
    "Keyword": SearchAttributeKey.for_keyword,
    "Int": SearchAttributeKey.for_int,
    "Double": SearchAttributeKey.for_float,
    "Bool": SearchAttributeKey.for_bool,
}
KEYS: dict[str, Any] = {name: _MAKERS[kind](name) for name, kind in SEARCH_ATTRIBUTES.items()}


def publish(values: dict[str, str | int | float | bool]) -> None:
    """Upsert what differs from the workflow's current attributes: every upsert is an event in the history."""
    current = workflow.info().typed_search_attributes
    changed = [KEYS[name].value_set(value) for name, value in values.items() if current.get(KEYS[name]) != value]
    if changed:
        workflow.upsert_search_attributes(changed)
