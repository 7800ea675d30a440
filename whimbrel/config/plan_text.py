"""Writes a plan file for an operator to read and correct: what was found, what is suggested, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

from whimbrel.config.quantity import format_size
from whimbrel.contracts.migration import VmSummary

SCHEMA_FILE = "whimbrel-plan.schema.json"

_HINTS = """\
defaults:
  # mode: incremental      # or cold
  # rounds:
  #   outage_budget: 60s   # cut over by itself when the forecast outage fits
  #   cutover: auto        # manual: hold until `whimbrel cutover`
  # window:                # when the cutover may begin
  #   opens_at: 2026-11-28T22:00:00Z
  #   closes_at: 2026-11-29T04:00:00Z
  # confirm:               # what ends the confirm gate besides `whimbrel confirm`
  #   after: 24h
  #   then: auto_confirm   # or auto_rollback
  # bandwidth: 50MB/s      # of each VM's copies
  keep_writes: false       # true: a rollback first brings the target's writes back
"""


def dump_plan(
    *,
    name: str,
    source: str,
    target: str,
    vms: Sequence[VmSummary],
    target_networks: Sequence[str],
    target_pools: Sequence[str],
    schema: str = SCHEMA_FILE,
) -> str:
    """YAML text of a plan for these VMs; mappings that cannot be guessed are left empty and are refused until filled.

    A network or pool is guessed when the target has one of the same name, or exactly one at all.
    """
    modes = {vm.suggested for vm in vms}
    lines = [
        f"# yaml-language-server: $schema={schema}",
        f"# (editors then complete and check this file: whimbrel schema plan > {schema})",
        "# Written by `whimbrel plan`; correct it, then: whimbrel precheck PLAN, whimbrel migrate PLAN",
        "version: 1",
        f"name: {_scalar(name)}",
        f"source: {_scalar(source)}",
        f"target: {_scalar(target)}",
        *_section("networks", (item for vm in vms for item in vm.networks), target_networks),
        *_section("storage", (item for vm in vms for item in vm.pools), target_pools),
        *_HINTS.splitlines(),
        f"vms:{f'  # {len(vms)}; suggested: {_counts(vms)}' if len(modes) > 1 else ''}",
    ]
    for vm in vms:
        lines += [
            f"  - name: {_scalar(vm.name)}",
            f"    # {_comment(_traits(vm))}",
            f"    mode: {vm.suggested}  # {_comment(vm.why)}",
        ]
    return "\n".join(lines) + "\n"


def suggest(found: Iterable[str], offered: Sequence[str]) -> dict[str, str | None]:
    """Source name -> target name of the same name, else the only one there is, else None."""
    only = offered[0] if len(offered) == 1 else None
    return {item: item if item in offered else only for item in sorted(set(found))}


def _section(key: str, found: Iterable[str], offered: Sequence[str]) -> list[str]:
    mapping: Mapping[str, str | None] = suggest(found, offered)
    choice = _comment(", ".join(offered)) or "none was found"
    if not mapping:
        return [f"{key}: {{}}"]
    lines = [f"{key}:  # source: target; the target has: {choice}"]
    for here, there in mapping.items():
        lines.append(f"  {_scalar(here)}: {_scalar(there)}" if there else f"  {_scalar(here)}:  # choose one")
    return lines


def _counts(vms: Sequence[VmSummary]) -> str:
    modes = [vm.suggested for vm in vms]
    return ", ".join(f"{modes.count(mode)} {mode}" for mode in sorted(set(modes)))


def _traits(vm: VmSummary) -> str:
    disks = "1 disk" if vm.disks == 1 else f"{vm.disks} disks"
    return f"{vm.power}, {vm.vcpus} vCPU, {format_size(vm.memory_bytes)} memory, {disks} {format_size(vm.disk_bytes)}"


def _scalar(text: str) -> str:
    """One YAML value on one line, quoted only where it must be."""
    style = None if text.isprintable() else '"'
    return yaml.safe_dump(text, width=10**9, allow_unicode=True, default_style=style).split("\n...")[0].strip()


def _comment(text: str) -> str:
    """Text that cannot end the comment it stands in, and holds nothing that YAML forbids."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
