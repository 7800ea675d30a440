"""``docs/prechecks.md``, written from the rules: ``python -m whimbrel.precheck.document docs/prechecks.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from whimbrel.precheck.registry import RULES
from whimbrel.precheck.rule import ALWAYS, Rule

_HEAD = """\
# Prechecks

<!-- Written by `python -m whimbrel.precheck.document docs/prechecks.md`; a test holds it to the rules. -->

Every rule is a pure function over facts that are gathered once. It answers `ok`, `found`, or `unknown` when a fact is
missing; a finding says what was found, with figures, and what to do.

| severity | meaning of `found` |
|---|---|
| block | the migration does not begin (or the cutover does not); list the rule's id under `ignore` to accept it |
| warn | it can go wrong, or cost more than expected; the migration goes on |
| info | worth knowing |

`unknown` never blocks. Stages: **plan** (inventory only), **start** (with the data path tried), **cutover** (again just
before the source is stopped: only what may have changed since). Numbers refer to the catalogue of checks that
comparable systems make; `new` is in none of them.

"""


def _row(rule: Rule) -> str:
    stages = "all" if rule.stages == ALWAYS else ", ".join(s for s in ("plan", "start", "cutover") if s in rule.stages)
    numbers = ", ".join(str(number) for number in rule.catalogue) or "new"
    return f"| `{rule.id}` | {rule.severity.value} | {stages} | {numbers} | {rule.explanation} |"


def document() -> str:
    """The page's text: the head, then one table for each area in the order of the rules."""
    areas: dict[str, list[Rule]] = {}
    for rule in RULES:
        areas.setdefault(rule.id.split(".")[0], []).append(rule)
    parts = [_HEAD, f"{len(RULES)} rules.\n"]
    for area, rules in areas.items():
        parts.append(f"\n## {area}\n\n| rule | severity | stages | catalogue | what it says |\n|---|---|---|---|---|\n")
        parts.extend(f"{_row(rule)}\n" for rule in rules)
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
