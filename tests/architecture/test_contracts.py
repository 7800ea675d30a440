"""What crosses Temporal: every activity has its limits, every model is a closed, frozen value without bulk."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import activities
import whimbrel.contracts
from whimbrel.contracts import activity_io, names, timeouts, verbs
from whimbrel.contracts.migration import MigrationInput
from workflows.cold import ColdMigration
from workflows.dual_attach import DualAttachMigration
from workflows.incremental import IncrementalMigration
from workflows.surveys import Inventory, Precheck


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        yield importlib.import_module(found.name)


def activity_names() -> set[str]:
    found = set()
    for module in modules(activities):
        for _, holder in inspect.getmembers(module, inspect.isclass):
            for _, member in inspect.getmembers(holder):
                definition = getattr(member, "__temporal_activity_definition", None)
                if definition is not None:
                    found.add(definition.name)
    return found


def contract_models() -> list[type[BaseModel]]:
    return sorted(
        {
            model
            for module in modules(whimbrel.contracts)
            for _, model in inspect.getmembers(module, inspect.isclass)
            if issubclass(model, BaseModel)
        },
        key=lambda model: f"{model.__module__}.{model.__name__}",
    )


def reachable(annotation: Any, seen: set[Any]) -> set[Any]:
    """All types in an annotation, through containers and the fields of models."""
    if annotation in seen:
        return seen
    try:
        seen.add(annotation)
    except TypeError:
        return seen
    for part in typing.get_args(annotation):
        reachable(part, seen)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        for field in annotation.model_fields.values():
            reachable(field.annotation, seen)
    return seen


def test_every_activity_has_its_limits_and_no_row_is_idle() -> None:
    assert activity_names() == set(timeouts.TABLE)


@pytest.mark.parametrize("activity", sorted(timeouts.TABLE))
def test_limits_are_sane(activity: str) -> None:
    row = timeouts.TABLE[activity]
    assert row.start_to_close.total_seconds() > 0
    steady = row.retry.backoff_coefficient == 1.0
    longest = row.retry.maximum_interval or (row.retry.initial_interval if steady else None)
    assert longest is not None
    assert longest.total_seconds() <= 300
    if row.start_to_close.total_seconds() > 600:
        assert row.heartbeat is not None, "a long activity without heartbeats hides a dead worker"
    if row.retry.maximum_attempts:
        assert row.heartbeat is not None, "only copies end their attempts: their ends are opened anew"


@pytest.mark.parametrize("activity", sorted(activity_names()))
def test_one_model_in_and_one_out(activity: str) -> None:
    for module in modules(activities):
        for _, holder in inspect.getmembers(module, inspect.isclass):
            for _, member in inspect.getmembers(holder):
                definition = getattr(member, "__temporal_activity_definition", None)
                if definition is not None and definition.name == activity:
                    hints = typing.get_type_hints(member)
                    result = hints.pop("return")
                    assert len(hints) == 1
                    for model in (result, *hints.values()):
                        assert issubclass(model, BaseModel)


@pytest.mark.parametrize("model", contract_models(), ids=lambda model: model.__name__)
def test_models_are_closed_values(model: type[BaseModel]) -> None:
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "forbid"
    types: set[Any] = set()
    for field in model.model_fields.values():
        reachable(field.annotation, types)
    assert not types & {bytes, bytearray, memoryview, Any, object}, "no bulk and nothing untyped crosses Temporal"


def test_a_model_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        verbs.Verb.model_validate({"by": "ops", "extra": 1})
    with pytest.raises(ValidationError):
        verbs.SetBandwidth(bytes_per_s=0)
    with pytest.raises(ValidationError):
        setattr(activity_io.VmInput(cloud="a", ref="b"), "ref", "c")  # noqa: B010 - a read-only field, said to mypy


def test_new_fields_of_the_carried_state_have_defaults() -> None:
    """A run that continues as new under an older worker must still be read."""
    assert MigrationInput.model_fields["state"].default is None
    state = importlib.import_module("whimbrel.contracts.migration").MigrationState
    required = {name for name, field in state.model_fields.items() if field.is_required()}
    assert required == {"migration", "started_at", "phase", "spec"}


@pytest.mark.parametrize("defined", [IncrementalMigration, ColdMigration, DualAttachMigration, Precheck, Inventory])
def test_workflow_names_are_the_contract(defined: type[Any]) -> None:
    definition = getattr(defined, "__temporal_workflow_definition")
    assert definition.name in {names.INCREMENTAL, names.COLD, names.DUAL_ATTACH, names.PRECHECK, "Inventory"}


@pytest.mark.parametrize("defined", [IncrementalMigration, ColdMigration, DualAttachMigration])
def test_every_verb_is_an_update_with_a_validator(defined: type[Any]) -> None:
    definition = getattr(defined, "__temporal_workflow_definition")
    assert set(definition.updates) == set(verbs.VERBS)
    assert all(update.validator is not None for update in definition.updates.values())
    assert set(definition.queries) >= {names.STATUS_QUERY, names.LEDGER_QUERY, names.FINDINGS_QUERY}
