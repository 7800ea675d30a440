"""The report on a terminal: figures, and that brackets in names are not read as markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.report.sample import DIGESTS, rounds, sample_report, sample_status, troubled_report
from whimbrel.model.progress import MigrationReport, VerifyRecord
from whimbrel.report.terminal import render_terminal, sparkline


def shown(report: MigrationReport, width: int = 140, *, colour: bool = False) -> str:
    """What a terminal of this width shows."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(render_terminal(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures() -> None:
    words = shown(sample_report())
    for part in ("shop-db", "kvm-a → kvm-b", "Completed", "10.5 s", "12 % too long", "5.2 GiB", *DIGESTS):
        assert part in words
    lines = {line.split()[0]: line for line in words.splitlines() if line.split()}
    assert lines["0"].split()[1:] == [
        "baseline",
        *["2026-11-23", "20:00:12", "UTC", "41", "s", "30", "GiB", "5", "GiB", "125", "MiB/s"],
    ]
    assert "source.agent" in words


def test_trouble_and_leftovers() -> None:
    words = shown(troubled_report())
    assert "baseline: QuotaExceeded" in words
    assert "What to do: free space, then resume" in words
    assert "Left over\n  kvm-b volume shop-db-vda-ab12cd34ef" in words
    assert "not compared" in words


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/]", "[link=file:]y", "a\\[b"])
def test_brackets_are_text(name: str) -> None:
    report = sample_report(sample_status(vm=name), reason=name, findings=(name,), leftovers=(name,))
    assert shown(report).count(name) == 5


def test_many_rounds_are_cut() -> None:
    words = shown(sample_report(sample_status(rounds=rounds(60), rounds_done=70)))
    numbers = [int(line.split()[0]) for line in words.splitlines() if line.strip()[:1].isdigit() and "UTC" in line]
    assert numbers == [0, *range(49, 60)]
    assert "12 of 70 rounds" in words


def test_bad_news_are_red() -> None:
    words = shown(sample_report(source_restored=False, outcome="refused"), colour=True)
    red = [line for line in words.splitlines() if "\x1b[1;31m" in line]
    assert len(red) == 2


def test_narrow_terminal_loses_no_digest() -> None:
    words = "".join(shown(sample_report(), width=60).split())
    assert "7d0c5a1e-0000-4c2f-9d3e-1f2e3d4c5b6a" in words


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 1, 4, 8]) == "·▂▅█"
    assert len(sparkline(list(range(100)))) == 40


def test_a_handover_says_that_nothing_was_copied() -> None:
    record = VerifyRecord(
        disk="vda", mode="same-volume", compared_bytes=0, skipped_zero_bytes=0, mismatches=0, digest="vda 1"
    )
    words = " ".join(shown(sample_report(sample_status(verify=(record,)))).split())
    assert "the very same volumes: 1 disks changed hands, nothing was copied" in words
