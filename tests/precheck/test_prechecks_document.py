"""The page of the rules is the one that the rules give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from whimbrel.precheck.document import document
from whimbrel.precheck.registry import RULES

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_current() -> None:
    page = (ROOT / "docs" / "prechecks.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m whimbrel.precheck.document docs/prechecks.md"


def test_every_rule_has_one_row_of_five_cells() -> None:
    rows = [line for line in document().splitlines() if line.startswith("| `")]
    assert len(rows) == len(RULES)
    assert {row.split("`")[1] for row in rows} == {rule.id for rule in RULES}
    assert all(row.count("|") == 6 for row in rows)


def test_command_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "prechecks.md"
    subprocess.run([sys.executable, "-m", "whimbrel.precheck.document", str(page)], check=True, cwd=ROOT, timeout=60)
    assert page.read_text(encoding="utf-8") == document()
