"""From a plan file to one complete plan for each VM; every mistake is told at once, with its line."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from whimbrel.config.clouds import WhimbrelConfig
from whimbrel.config.document import Document, parse, read_text
from whimbrel.config.plan_file import PlanFile, Settings, VmEntry
from whimbrel.config.problem import InvalidFile, Loc, Problem, did_you_mean
from whimbrel.config.schema import in_order, validate, value_at
from whimbrel.model.plan import Companion, VmPlan

MAPPINGS = ("networks", "storage")
SETTINGS = tuple(Settings.model_fields)


@dataclass(frozen=True, slots=True)
class LoadedPlan:
    """A checked plan: its head and one complete ``VmPlan`` per VM, in the file's order."""

    file: str
    name: str
    source: str
    target: str
    vms: tuple[VmPlan, ...]

    def select(self, names: Collection[str]) -> tuple[VmPlan, ...]:
        """The VMs of these names, in the file's order; all when none is named. Raises InvalidFile."""
        known = [plan.vm for plan in self.vms]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidFile(
                [Problem(self.file, None, (), f"has no VM {name!r}; {did_you_mean(name, known)}") for name in unknown]
            )
        return together([plan for plan in self.vms if not names or plan.vm in names])


def together(plans: Sequence[VmPlan]) -> tuple[VmPlan, ...]:
    """Plans that are started at once, each with the others as companions: quotas are asked for all of them."""
    every = [
        Companion(vm=plan.vm, target_name=plan.target_name, storage=plan.storage, placement=plan.placement)
        for plan in plans
    ]

    def beside(plan: VmPlan) -> tuple[Companion, ...]:
        # what is the same is not repeated: each plan names all the others
        return tuple(
            one.model_copy(
                update={key: None for key in ("storage", "placement") if getattr(one, key) == getattr(plan, key)}
            )
            for one in every
            if one.vm != plan.vm
        )

    return tuple(plan.model_copy(update={"companions": beside(plan)}) for plan in plans)


def load_plan(path: Path, config: WhimbrelConfig | None = None) -> LoadedPlan:
    """Read and check a plan. Raises InvalidFile with every mistake.

    With ``config`` its two clouds must be there, and a VM whose plan names no site gets the source cloud's.
    """
    return load_plan_text(read_text(path), str(path), config)


def load_plan_text(text: str, file: str, config: WhimbrelConfig | None = None) -> LoadedPlan:
    """The same from text. Raises InvalidFile."""
    document = parse(text, file)
    plan_file = validate(PlanFile, document)
    problems = [*_clouds(plan_file, document, config), *_names(plan_file, document)]
    site = config.site_of(plan_file.source) if config is not None and plan_file.source in config.clouds else None
    plans = []
    for index, entry in enumerate(plan_file.vms):
        problems += _mappings(plan_file, document, index)
        try:
            plans.append(_resolve(plan_file, entry, site))
        except ValidationError as error:
            problems += [_refused(details["loc"], str(details["msg"]), document, index) for details in error.errors()]
    if problems:
        raise InvalidFile(in_order(problems))
    return LoadedPlan(file, plan_file.name, plan_file.source, plan_file.target, tuple(plans))


def _resolve(plan_file: PlanFile, entry: VmEntry, site: str | None) -> VmPlan:
    given = _merge(_given(plan_file.defaults or Settings()), _given(entry))
    given["vm"] = given.pop("name")
    for key in MAPPINGS:
        given[key] = {**(getattr(plan_file, key) or {}), **(getattr(entry, key) or {})}
    head = {"plan": plan_file.name, "source": plan_file.source, "target": plan_file.target}
    if site is not None:
        given.setdefault("site", site)
    return VmPlan.model_validate({**head, **given})


def _given(model: BaseModel) -> dict[str, Any]:
    """What was written, by field name; an empty value counts as not written."""
    return model.model_dump(exclude_unset=True, exclude_none=True)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``under``, sections key by key, everything else as a whole."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _clouds(plan_file: PlanFile, document: Document, config: WhimbrelConfig | None) -> list[Problem]:
    if config is None:
        return []
    return [
        document.problem((end,), f"cloud {name!r} is not in whimbrel.yaml; {did_you_mean(name, config.clouds)}")
        for end, name in (("source", plan_file.source), ("target", plan_file.target))
        if name not in config.clouds
    ]


def _names(plan_file: PlanFile, document: Document) -> list[Problem]:
    problems = []
    first: dict[tuple[str, str], int] = {}
    for index, entry in enumerate(plan_file.vms):
        at_target = entry.target_name or entry.name
        for key, name in (("name", entry.name), ("target_name", at_target)):
            earlier = first.setdefault((key, name), index)
            if earlier == index or (key == "target_name" and first[("name", entry.name)] != index):
                continue
            what = f"{name!r} is taken by vms[{earlier}] on line {document.line(('vms', earlier))}"
            written: Loc = ("vms", index, key if key in document.data["vms"][index] else "name")
            problems.append(document.problem(written, what if key == "name" else f"target name {what}"))
        if plan_file.source == plan_file.target and at_target == entry.name:
            what = f"source and target are both {plan_file.source!r}, so the VM needs a target_name other than its name"
            problems.append(document.problem(("vms", index), what))
    return problems


def _mappings(plan_file: PlanFile, document: Document, index: int) -> list[Problem]:
    """A VM without disks or network cards may say so with ``{}``; silence is an oversight."""
    problems = []
    for key, things, thing in (("networks", "network", "network cards"), ("storage", "pool", "disks")):
        if getattr(plan_file, key) is None and getattr(plan_file.vms[index], key) is None:
            what = f"no {key} mapping: write source {things}: target {things} ('*' for all others), {{}} for no {thing}"
            problems.append(document.problem((), what))
    return problems


def _refused(loc: tuple[str | int, ...], message: str, document: Document, index: int) -> Problem:
    """A mistake that only shows once defaults and the VM's entry are put together, where it was written."""
    parts = [_as_written(part) for part in loc]
    own: Loc = ("vms", index, *parts)
    shared: Loc = ("defaults", *parts)
    place = shared if value_at(document.data, own) is None and value_at(document.data, shared) is not None else own
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    return document.problem(place, re.sub(r"\b[a-z]+(?:_[a-z]+)*_s\b", lambda m: str(_as_written(m[0])), text))


def _as_written(part: str | int) -> str | int:
    if not isinstance(part, str):
        return part
    return part.removesuffix("_bytes_per_s").removesuffix("_s")
