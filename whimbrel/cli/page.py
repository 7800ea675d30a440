"""Migrations as tables and bars on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from whimbrel.cli.migration_view import MigrationView
from whimbrel.model.figures import bytes_text, duration_text, rate_text
from whimbrel.model.forecast import Forecast, RoundRecord
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import DiskProgress, MigrationStatus, Phase

_STYLES = {
    Phase.COMPLETED: "green",
    Phase.ROLLED_BACK: "yellow",
    Phase.REFUSED: "red",
    Phase.ATTENTION: "bold red",
    Phase.CONFIRM: "bold cyan",
    Phase.CUTOVER: "magenta",
    Phase.ROLLING_BACK: "yellow",
}
ROUNDS_SHOWN = 5


def listing(views: Sequence[MigrationView]) -> RenderableType:
    """One line per migration."""
    if not views:
        return Text("no migrations yet: whimbrel migrate PLAN")
    table = Table(box=None, pad_edge=False)
    for name in ("PLAN/VM", "MODE", "PHASE"):
        table.add_column(name, overflow="fold")
    table.add_column("%", justify="right")
    table.add_column("OUTAGE IF NOW", justify="right")
    table.add_column("STARTED")
    table.add_column("")
    for view in views:
        table.add_row(
            Text(f"{view.plan}/{view.vm}"),
            view.mode,
            phase_text(view),
            "" if view.percent is None else str(view.percent),
            "" if view.outage_s is None or view.ended else duration_text(view.outage_s),
            f"{view.started_at.astimezone():%Y-%m-%d %H:%M}",
            Text("waits for you", style="bold red") if view.waits else Text(""),
        )
    return table


def phase_text(view: MigrationView) -> Text:
    """The phase, or how it ended."""
    if view.state not in {"running", "completed"}:
        return Text(f"{view.phase} {view.state}".strip(), style="red")
    paused = view.status is not None and view.status.paused and not view.ended
    style = _STYLES.get(Phase(view.phase), "") if view.phase in set(Phase) else ""
    return Text((view.phase or view.state) + (" (paused)" if paused else ""), style=style)


def details(view: MigrationView) -> RenderableType:
    """All about one migration: head, disks, rounds, forecast, what it waits for."""
    parts: list[RenderableType] = [_head(view), *_disks(view)]
    if view.status is not None:
        parts += [*_rounds(view.status), *_figures(view.status)]
        parts += [] if view.ended else _waiting(view.status)
    parts += _trailer(view)
    return Group(*parts)


def screen(views: Sequence[MigrationView], footer: str) -> RenderableType:
    """What ``watch`` shows: for each migration its head, its bars, what it forecasts and waits for."""
    parts: list[RenderableType] = []
    for view in views:
        parts += [_head(view), *_disks(view)]
        if view.status is not None:
            parts += [*_figures(view.status), *([] if view.ended else _waiting(view.status))]
        parts += [*_trailer(view), Text("")]
    return Group(*parts, Text(footer, style="dim"))


def one_line(view: MigrationView) -> str:
    """The state in a line, for output that is no terminal."""
    words = [f"{view.plan}/{view.vm}:", phase_text(view).plain]
    words += [
        f"{disk.disk} {disk.percent:.0f}%" + (f" {rate_text(disk.rate_bytes_per_s)}" if disk.rate_bytes_per_s else "")
        for disk in progress(view)
    ]
    if view.outage_s is not None and not view.ended:
        words.append(f"outage if now {duration_text(view.outage_s)}")
    if view.status is not None and view.status.trouble is not None:
        words.append(f"waits: {view.status.trouble.message}")
    if view.report is not None and view.report.reason:
        words.append(view.report.reason)
    return "  ".join([*words, *([view.note] if view.note else [])])


def progress(view: MigrationView) -> list[DiskProgress]:
    """Each disk's newest figures: a running copy's own report wins over the workflow's."""
    disks = {disk.disk: disk for disk in (view.status.disks if view.status is not None else ())}
    for beat in view.copies:
        percent = 100.0 * beat.done_bytes / beat.total_bytes if beat.total_bytes else 0.0
        disks[beat.disk] = DiskProgress(
            disk=beat.disk,
            percent=min(percent, 100.0),
            done_bytes=beat.done_bytes,
            total_bytes=beat.total_bytes,
            sent_bytes=beat.sent_bytes,
            rate_bytes_per_s=beat.rate_bytes_per_s,
            eta_s=beat.eta_s,
        )
    return [disks[key] for key in sorted(disks)]


def plans(vms: Sequence[VmPlan]) -> Table:
    """What a plan would start."""
    table = Table(box=None, pad_edge=False)
    for name in ("VM", "MODE", "FROM", "TO", "AS", "OUTAGE BUDGET", "CUTOVER", "CONFIRM"):
        table.add_column(name, overflow="fold")
    for vm in vms:
        confirm = vm.confirm.then + (f" after {duration_text(vm.confirm.after_s)}" if vm.confirm.after_s else "")
        budget = duration_text(vm.rounds.outage_budget_s) if vm.mode == "incremental" else "-"
        row = (vm.vm, vm.mode, vm.source, vm.target, vm.target_name or vm.vm, budget, vm.rounds.cutover, confirm)
        table.add_row(*(Text(cell) for cell in row))
    return table


def _head(view: MigrationView) -> Text:
    way = f"  {view.status.source} → {view.status.target}" if view.status is not None else ""
    until = view.closed_at or (view.status.now if view.status is not None else None)
    took = f"  {duration_text((until - view.started_at).total_seconds())}" if until is not None else ""
    return Text.assemble((f"{view.plan}/{view.vm}", "bold"), f"  {view.mode}  ", phase_text(view), way, (took, "dim"))


def _disks(view: MigrationView) -> list[RenderableType]:
    rows = progress(view)
    if not rows:
        return []
    stages = {beat.disk: beat.stage for beat in view.copies}
    table = Table.grid(padding=(0, 2))
    for disk in rows:
        bar = ProgressBar(total=100, completed=disk.percent, width=30)
        size = f"{bytes_text(disk.done_bytes)} of {bytes_text(disk.total_bytes)}" if disk.total_bytes else ""
        rate = rate_text(disk.rate_bytes_per_s) if disk.rate_bytes_per_s else ""
        eta = f"ETA {duration_text(disk.eta_s)}" if disk.eta_s is not None and disk.percent < 100 else ""
        table.add_row("  " + disk.disk, bar, f"{disk.percent:.1f} %", size, rate, eta, stages.get(disk.disk, ""))
    return [table]


def _rounds(status: MigrationStatus) -> list[RenderableType]:
    if not status.rounds:
        return []
    table = Table(box=None, pad_edge=False)
    for name in ("  ROUND", "KIND", "CHANGED", "SENT", "RATE", "TOOK"):
        table.add_column(name, justify="left" if name == "KIND" else "right")
    for record in status.rounds[-ROUNDS_SHOWN:]:
        table.add_row(*_round(record))
    return [table]


def _round(record: RoundRecord) -> tuple[str, ...]:
    return (
        str(record.number),
        record.kind,
        bytes_text(record.changed_bytes),
        bytes_text(record.sent_bytes),
        rate_text(record.rate_bytes_per_s) if record.rate_bytes_per_s else "-",
        duration_text(record.elapsed_s),
    )


def _figures(status: MigrationStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if status.forecast is not None and status.outage is None:
        lines.append(Text("  " + forecast_line(status.forecast)))
    seconds = status.outage.seconds() if status.outage is not None else None
    if seconds is not None:
        said = f", forecast {duration_text(status.score.forecast_outage_s)}" if status.score is not None else ""
        lines.append(Text(f"  outage {duration_text(seconds)}{said}"))
    if status.bandwidth_bytes_per_s:
        lines.append(Text(f"  limited to {rate_text(status.bandwidth_bytes_per_s)}"))
    lines += [
        Text(f"  {v.disk}: {v.mode} comparison of {bytes_text(v.compared_bytes)}, {v.mismatches} differences")
        for v in status.verify
    ]
    return lines


def forecast_line(forecast: Forecast) -> str:
    """The forecast in words."""
    trend = {True: "rounds shrink", False: "rounds do not shrink", None: "too early to say whether rounds shrink"}
    parts = f"stop {duration_text(forecast.stop_s)}, delta {duration_text(forecast.delta_s)}"
    return (
        f"outage if cut over now: {duration_text(forecast.outage_s)} "
        f"({parts}, boot {duration_text(forecast.boot_s)}); {trend[forecast.converges]}"
    )


def _waiting(status: MigrationStatus) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if status.trouble is not None:
        trouble = status.trouble
        lines += [
            Text.assemble(("  waits for you: ", "bold red"), f"{trouble.step}: {trouble.message}"),
            Text.assemble(("  what to do: ", "bold"), trouble.action),
            Text(f"  choices: {_verbs(trouble.choices)}"),
        ]
    elif status.phase is Phase.CONFIRM:
        lines.append(Text.assemble(("  waits for you: ", "bold cyan"), "confirm or rollback", _deadline(status)))
    if status.trouble is None and status.allowed:
        lines.append(Text(f"  possible now: {_verbs(status.allowed)}", style="dim"))
    return lines


def _deadline(status: MigrationStatus) -> str:
    if status.confirm_deadline is None:
        return ""
    left = duration_text(max((status.confirm_deadline - status.now).total_seconds(), 0))
    return f"; {status.confirm_default} in {left}, at {local(status.confirm_deadline)}"


def _trailer(view: MigrationView) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(f"  {retry.step} is tried again (attempt {retry.attempt}): {retry.message}", style="yellow")
        for retry in view.retries
    ]
    if view.report is not None:
        blocking = [finding for finding in view.report.findings if finding.startswith("block")]
        reasons = blocking if view.report.outcome == "refused" and blocking else [view.report.reason]
        lines.append(Text(f"  outcome: {view.report.outcome}"))
        lines += [Text(f"  {reason}") for reason in reasons if reason]
        lines += [Text(f"  left over: {item}", style="red") for item in view.report.leftovers]
    if view.note:
        lines.append(Text(f"  {view.note}", style="yellow"))
    return lines


def _verbs(verbs: Sequence[str]) -> str:
    return ", ".join(verb.replace("_", "-") for verb in verbs)


def local(moment: datetime) -> str:
    """A time in the operator's zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"
