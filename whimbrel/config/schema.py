"""Reads documents into models, and tells every mistake in the operator's words; exports JSON schemas for editors."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from whimbrel.config.document import Document
from whimbrel.config.problem import InvalidFile, Loc, Problem, did_you_mean
from whimbrel.model.endpoint import Frozen

M = TypeVar("M", bound=BaseModel)

_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "list_type": "a list",
    "tuple_type": "a list",
}

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names that appear in ids, queues and paths."""
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class YamlModel(Frozen):
    """Base of what stands in YAML: unknown keys refused, descriptions in the schema taken from the docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )


def validate(model: type[M], document: Document, *, show_values: bool = True) -> M:
    """``model`` made from the document's data. Raises InvalidFile with every mistake.

    ``show_values=False`` keeps what was written out of the messages (files that could hold a secret by mistake).
    """
    try:
        return model.model_validate(document.data, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = problems_of(error, model, document, show_values=show_values)
    raise InvalidFile(problems)  # outside of the handler: pydantic's error holds the values, it must not hang on ours


def problems_of(
    error: ValidationError, model: type[BaseModel], document: Document, *, show_values: bool = True
) -> list[Problem]:
    """A pydantic error as problems with lines, ordered as in the file."""
    found = []
    for details in error.errors(include_url=False, include_context=True):
        loc = written_loc(document.data, details["loc"], absent=details["type"] == "missing")
        if details["type"] == "too_short" and value_at(document.data, loc):
            continue  # its items are refused one by one, and counted as absent
        known = known_keys(model, loc[:-1], document.data) if details["type"] == "extra_forbidden" else set()
        found.append(document.problem(loc, _say(details, loc, known, show_values=show_values)))
    return in_order(found)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Without repeats, by line."""
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)


def value_at(data: Any, loc: Loc) -> Any:
    """The part of plain data at ``loc``; None where there is none."""
    for part in loc:
        if not _holds(data, part):
            return None
        data = data[part]
    return data


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def written_loc(data: Any, loc: Loc, *, absent: bool) -> Loc:
    """``loc`` without what pydantic adds and nobody wrote: the tags of unions, ``[key]`` marks.

    ``absent``: its last part is a key that should have been written.
    """
    out: list[str | int] = []
    for index, part in enumerate(loc):
        if _holds(data, part):
            data = data[part]
        elif index < len(loc) - 1 or not absent:
            continue
        out.append(part)
    return tuple(out)


def known_keys(annotation: Any, loc: Loc, data: Any = None) -> set[str]:
    """The keys that may stand in the mapping at ``loc`` of a model or annotation, for messages.

    Where several models are possible the one whose ``kind`` was written is taken, else all of them.
    """
    return {key for model in _models_at(annotation, loc, data) for key in _fields(model)}


def json_schema(model: type[BaseModel], title: str) -> str:
    """The JSON schema of what may be written, as text that is committed and shown by ``whimbrel schema``."""
    schema = {"$schema": SCHEMA_DIALECT, **model.model_json_schema(by_alias=True), "title": title}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _fields(model: type[BaseModel]) -> Mapping[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _models_at(annotation: Any, loc: Loc, data: Any) -> list[type[BaseModel]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models_at(get_args(annotation)[0], loc, data)
    if origin in {Union, types.UnionType}:
        every = [model for choice in get_args(annotation) for model in _models_at(choice, loc, data)]
        kind = value_at(data, (*loc, "kind"))
        chosen = [one for one in every if "kind" in one.model_fields and kind in get_args(_fields(one)["kind"])]
        return chosen or every
    if origin in {list, tuple, dict}:
        inner = get_args(annotation)[1 if origin is dict else 0]
        return _models_at(inner, loc[1:], value_at(data, loc[:1])) if loc else []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            return [annotation]
        field = _fields(annotation).get(str(loc[0]))
        return _models_at(field, loc[1:], value_at(data, loc[:1])) if field is not None else []
    return []


def _say(details: ErrorDetails, loc: Loc, known: set[str], *, show_values: bool) -> str:
    kind, context = details["type"], details.get("ctx", {})
    shown = _shown(details["input"]) if show_values else ""
    match kind:
        case "extra_forbidden":
            text = f"unknown key; {did_you_mean(str(loc[-1]), known)}"
        case "missing":
            text = "is missing"
        case "too_short":
            text = "is empty"
        case "string_pattern_mismatch" if context["pattern"] == NAME_PATTERN:
            text = f"should be letters, digits, dots, dashes and underscores only{shown}"
        case "value_error":
            text = str(context["error"])
        case "literal_error" | "enum":
            text = f"should be {context['expected']}{shown}"
        case "union_tag_invalid":
            text = f"kind should be one of {context['expected_tags']}"
        case "union_tag_not_found":
            text = "kind is missing"
        case "string_type":
            quotes = isinstance(details["input"], (int, float)) and show_values
            text = f"should be text{shown}" + ("; write it in quotes" if quotes else "")
        case _ if kind in _WANTED:
            text = f"should be {_WANTED[kind]}{shown}"
        case _:
            message = details["msg"].removeprefix("Input ")
            text = message[0].lower() + message[1:] + shown
    return text


def _shown(value: object) -> str:
    if value is None:
        return ", not empty"
    if isinstance(value, (str, int, float)):
        return f", not {str(value)[:60]!r}"
    return ", not a mapping" if isinstance(value, dict) else ", not a list"
