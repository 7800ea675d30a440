"""The HTML page: figures, plots, escaping, and that it needs nothing from anywhere."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.report.pagereader import Page
from tests.report.sample import DIGESTS, START, at, rounds, sample_report, sample_status, troubled_report
from whimbrel.model.forecast import Forecast
from whimbrel.model.progress import MigrationReport, Outage, StepRecord, VerifyRecord
from whimbrel.report.html import render


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(sample_report()))


def test_summary_holds_the_figures(page: Page) -> None:
    rows = page.rows()
    assert "VM=shop-db" in rows
    assert "Plan=autumn" in rows
    assert "Mode=incremental" in rows
    assert "From → to=kvm-a → kvm-b" in rows
    assert "Outcome=Completed" in rows
    assert "Outage=10.5 s" in rows
    assert "Forecast=forecast 11.8 s, actual 10.5 s: 12 % too long" in rows
    assert "Bytes sent=5.2 GiB" in rows
    assert "Bytes read=6 GiB" in rows
    assert "Rounds=6" in rows
    assert "Verification=equal: 2 disks, 10 GiB compared (full)" in rows
    assert "Left over=none" in rows
    assert "Started=2026-11-23 20:00:00 UTC" in rows
    assert "Ended=2026-11-23 20:03:19 UTC (after 3 min 19 s)" in rows


def test_every_disk_shows_its_digest(page: Page) -> None:
    for digest in DIGESTS:
        assert ("code", digest) in page.texts


def test_a_bar_for_each_round_with_its_bytes(page: Page) -> None:
    assert len(page.named("rect", "bar")) == 6
    assert len(page.named("rect", "baseline")) == 1
    assert len([one for one in page.named("rect", "bar") if "final" in (one["class"] or "").split()]) == 1
    assert ("text", "5 GiB") in page.texts
    assert ("text", "logarithmic axis") in page.texts
    assert any("round 3 (delta)" in text and "22.8 MiB" in text for _, text in page.texts)


def test_larger_rounds_have_taller_bars(page: Page) -> None:
    heights = [float(one["height"] or 0) for one in page.named("rect", "bar")]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] > 2 * heights[-1] > 0


def test_equal_rounds_are_drawn_on_a_linear_axis() -> None:
    even = tuple(one.model_copy(update={"sent_bytes": 10 << 20}) for one in rounds())
    page = Page(render(sample_report(sample_status(rounds=even))))
    assert "logarithmic" not in page.words
    assert len({one["height"] for one in page.named("rect", "bar")}) == 1


def test_forecast_line_and_the_actual_outage(page: Page) -> None:
    assert page.named("polyline", "line")
    assert len(page.named("circle", "mark")) == 1
    assert ("text", "actual 10.5 s") in page.texts
    assert any(
        text.startswith("31 s with 31 MiB of changes: stop 4 s, changes 21 s, boot 6 s") for _, text in page.texts
    )


def test_timeline_has_a_row_for_each_step_and_the_outage(page: Page) -> None:
    rows = [text for name, text in page.texts if name == "text"]
    for step in ("precheck", "baseline", "round", "cutover", "rebuild", "verify", "commit"):
        assert rows.count(step) == 1
    assert ("text", "outage 10.5 s") in page.texts
    assert len(page.named("rect", "shade")) == 1
    assert len(page.named("rect", "done")) == 12
    assert any("guest stopped by its agent" in text for _, text in page.texts)


def test_parts_of_the_outage_add_up(page: Page) -> None:
    cells = [text for name, text in page.texts if name == "td"]
    names = ("guest stops", "last changes are copied", "target is built and runs", "guest boots, health checks pass")
    parts = {cells[index]: cells[index + 1] for index, text in enumerate(cells) if text in names}
    assert parts == dict(zip(names, ("3.5 s", "1.5 s", "500 ms", "5 s"), strict=True))


def test_ledger_findings_and_trouble() -> None:
    page = Page(render(sample_report()))
    assert ("code", "shop-db-vda-ab12cd34ef") in page.texts
    assert [text for name, text in page.texts if name == "span"].count("kept") == 3
    assert "Nothing was left over." in page.words
    assert "warn source.agent: the agent's channel is there but nothing answers" in page.words
    assert "Trouble" not in page.words
    troubled = Page(render(troubled_report()))
    assert "QuotaExceeded" in troubled.words
    assert "What to do: free space, then resume" in troubled.words
    assert ("li", "kvm-b volume shop-db-vda-ab12cd34ef") in troubled.texts
    assert "Left over=1 left: kvm-b volume shop-db-vda-ab12cd34ef" in troubled.rows()
    assert "Outage=none: the guest was not stopped" in troubled.rows()
    assert "Verification=not compared" in troubled.rows()
    assert "Source restored=yes, its definition is the one before" in troubled.rows()
    assert "Writes brought back=7 MiB" in troubled.rows()
    assert "Every rule was content." in troubled.words


def test_mismatches_are_shown_as_bad() -> None:
    record = VerifyRecord(
        disk="vda",
        mode="sampled",
        sample="5 %, seed 7",
        compared_bytes=1 << 30,
        skipped_zero_bytes=0,
        mismatches=2,
        first_mismatches=(4096, 65536),
        digest="d",
    )
    page = Page(render(sample_report(sample_status(verify=(record,)))))
    assert "Verification=2 mismatches in 1 GiB" in page.rows()
    assert "2 (first at 4096, 65536)" in page.words
    assert "sampled (5 %, seed 7)" in page.words
    assert page.named("div", "bad")


def test_source_that_was_not_restored_is_said() -> None:
    assert "Source restored=NO" in Page(render(sample_report(source_restored=False))).rows()


def _with_name(name: str) -> MigrationReport:
    steps = (StepRecord(name=name, started_at=at(0), ended_at=at(3), outcome="done", detail=name),)
    return sample_report(
        sample_status(vm=name, plan=name, source=name, target=name, steps=steps, health=(name,), target_ref=name),
        reason=name,
        findings=(name,),
        leftovers=(name,),
    )


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onload='x",
        "</title></style><svg onload=x>",
        "&lt;b&gt;",
        "<!-- -->",
        "]]>",
    ],
)
def test_names_are_text_and_never_markup(name: str) -> None:
    page = Page(render(_with_name(name)))
    known = {tag for tag, _ in Page(render(_with_name("plain"))).elements}
    assert {tag for tag, _ in page.elements} == known
    assert not known & {"script", "img", "link", "iframe", "object", "a"}
    assert all(not attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)
    assert f"VM={name}" in page.rows()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.text(max_size=40), number=st.floats(min_value=0, max_value=1e300), sent=st.integers(0, 1 << 70))
def test_any_text_and_any_figure_give_a_sound_page(name: str, number: float, sent: int) -> None:
    """Elements stay balanced (the reader asserts it), and no coordinate is without a number."""
    many = tuple(one.model_copy(update={"sent_bytes": sent, "rate_bytes_per_s": number}) for one in rounds(4))
    forecast = Forecast(
        made_at=START, stop_s=number, delta_bytes=number, delta_s=number, boot_s=1, outage_s=number, converges=None
    )
    report = _with_name(name)
    report = report.model_copy(
        update={"forecasts": (forecast,), "status": report.status.model_copy(update={"rounds": many})}
    )
    source = render(report)
    page = Page(source)
    source.encode("utf-8")
    for tag, attributes in page.elements:
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            value = attributes.get(key)
            if tag in {"rect", "line", "circle", "text"} and value is not None:
                assert -10_000 < float(value) < 10_000
                assert key not in {"width", "height"} or float(value) >= 0


def test_nothing_is_loaded_from_anywhere() -> None:
    for report in (sample_report(), troubled_report()):
        source = render(report)
        assert not re.search(
            r"(?i)\b(https?|ftp|data|file):|//[a-z]|url\(|@import|<script|<link|<img|src=|href=", source
        )
        policies = [one["content"] for one in Page(source).named("meta") if one.get("http-equiv")]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_page_is_whole_and_follows_light_and_dark() -> None:
    source = render(sample_report())
    assert source.startswith("<!doctype html>\n<html")
    assert source.endswith("</html>\n")
    assert "prefers-color-scheme:dark" in source
    page = Page(source)
    assert page.named("html")[0]["lang"] == "en"
    assert [one for one in page.named("meta") if one.get("charset") == "utf-8"]
    assert all(one.get("aria-label") for one in page.named("svg"))


def test_hundreds_of_rounds_stay_readable_and_small() -> None:
    source = render(sample_report(sample_status(rounds=rounds(300), rounds_done=1000)))
    page = Page(source)
    assert "Bytes sent in each round (the last 300 of 1000)" in page.words
    assert len(page.named("rect", "bar")) == 300
    assert len(source) < 400_000


def test_report_of_a_refused_migration_has_no_plots() -> None:
    status = sample_status(rounds=(), rounds_done=0, steps=(), verify=(), outage=None, score=None)
    page = Page(render(sample_report(status, outcome="refused", reason="precheck: disk.shareable", forecasts=())))
    assert page.named("svg") == []
    assert "Outcome=Refused: precheck: disk.shareable" in page.rows()


def test_outage_that_has_not_ended() -> None:
    outage = Outage(stop_requested_at=at(100), stopped_at=at(104))
    page = Page(render(sample_report(sample_status(outage=outage, score=None))))
    assert "Outage=the target did not pass its checks" in page.rows()
    assert "not ended" in page.words
    assert page.named("circle", "mark") == []


def test_clock_that_ran_backwards_breaks_nothing() -> None:
    outage = Outage(stop_requested_at=at(10), stopped_at=at(9), started_at=at(8))
    steps = (StepRecord(name="odd", started_at=START - timedelta(hours=1), ended_at=START - timedelta(hours=2)),)
    Page(render(sample_report(sample_status(outage=outage, steps=steps))))
