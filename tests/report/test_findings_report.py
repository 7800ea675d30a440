"""Findings on a terminal, and the line that a report keeps of each."""

from __future__ import annotations

import io
from typing import Literal

from rich.console import Console

from whimbrel.model.finding import Finding, Severity
from whimbrel.report.findings import counts_text, render_findings

Outcome = Literal["ok", "found", "unknown", "accepted"]


def finding(rule: str, severity: Severity, outcome: Outcome, found: str = "seen", action: str = "") -> Finding:
    return Finding(rule=rule, severity=severity, outcome=outcome, found=found, action=action)


FINDINGS = (
    finding("storage.free-space", Severity.BLOCK, "found", "fast [needs] 8 GiB", "free space"),
    finding("disk.tracking", Severity.WARN, "found", "no tracking for vdb", "convert it"),
    finding("source.passthrough", Severity.BLOCK, "accepted", "usb 1:2", "detach it"),
    finding("source.hostname", Severity.WARN, "unknown", "not known: the host name"),
    finding("source.found", Severity.BLOCK, "ok", "shop-db on kvm-a"),
)


def shown(findings: tuple[Finding, ...], *, every: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_findings(findings, every=every))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_found_comes_with_its_action() -> None:
    words = shown(FINDINGS)
    assert "BLOCK" in words
    assert "fast [needs] 8 GiB" in words
    assert "→ free space" in words
    assert "accepted" in words
    assert "shop-db on kvm-a" not in words
    assert words.splitlines()[-1].strip() == "1 block, 1 warn, 1 accepted, 1 unknown, 1 ok"


def test_every_shows_content_rules_too() -> None:
    assert "shop-db on kvm-a" in shown(FINDINGS, every=True)


def test_only_content_rules_give_one_line() -> None:
    assert shown(FINDINGS[-1:]).strip() == "1 ok"
    assert counts_text(()) == "no rules were asked"


def test_lines_for_reports() -> None:
    assert [one.line for one in FINDINGS] == [
        "block storage.free-space: fast [needs] 8 GiB - free space",
        "warn disk.tracking: no tracking for vdb - convert it",
        "block, accepted source.passthrough: usb 1:2 - detach it",
        "warn, unknown source.hostname: not known: the host name",
        "block, ok source.found: shop-db on kvm-a",
    ]
