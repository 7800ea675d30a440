"""Runs the demo: ``python -m labs.demo [--keep]``; ``--end`` ends what was kept."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from temporalio.client import Client, WorkflowHandle

from labs.demo.scene import DATA_BYTES, Proof, demo_plan, make_guest, migrate, rehearse, until
from labs.kvm import LabError
from labs.stage import Stage
from whimbrel.errors import WhimbrelError
from whimbrel.model.progress import MigrationReport, MigrationStatus, Phase
from whimbrel.runtime.exits import run_and_leave

KEPT = Path(".state/demo")
LINK_BYTES_PER_S = 24e6
"""Both modes get the same link, slow enough that the worker can be killed in the middle of the baseline."""


STREAM_BYTES_PER_S = 8e6
"""The link of the streamed guests: so slow that much has not arrived when it is asked for."""
READS = 1600
"""Blocks of 4 KiB that a streamed guest reads from all over its disk when it starts, as an application does."""


class Teller:
    """Prints what happens, each change once, with the time since the start."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=max(Console().width, 112))
        self._began = time.monotonic()
        self._said: tuple[Any, ...] = ()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {text}")

    def status(self, status: MigrationStatus) -> None:
        """A migration's status, when it has changed."""
        forecast = f", outage if cut over now {status.forecast.outage_s:.1f} s" if status.forecast else ""
        rounds = status.rounds[-1] if status.rounds else None
        last = f", round {rounds.number} sent {rounds.sent_bytes / 1e6:.1f} MB" if rounds else ""
        said = (status.phase, status.rounds_done)
        if said != self._said:
            self._said = said
            self.say(f"{status.vm}: [bold]{status.phase.value}[/bold]{last}{forecast}")


async def _kill_in_baseline(stage: Stage, teller: Teller, handle: WorkflowHandle[Any, MigrationReport]) -> None:
    """Wait until the baseline has copied a good part, kill the worker with SIGKILL, start another."""
    await until(handle, lambda now: now.phase is Phase.BASELINE, timeout_s=60)
    await asyncio.sleep(0.4 * DATA_BYTES / LINK_BYTES_PER_S)
    stage.workers[-1].kill()
    teller.say("[bold red]worker killed[/bold red] with SIGKILL in the middle of the baseline")
    await asyncio.to_thread(stage.start_worker)
    teller.say("another worker started; the copy goes on from its manifest")


def _table(proofs: list[Proof]) -> Table:
    table = Table(title="What was moved, and what it cost")
    for name in ("mode", "bytes moved", "rounds", "outage", "forecast", "records lost", "digests equal", "leftovers"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for proof in proofs:
        table.add_row(
            proof.mode,
            f"{proof.moved_bytes / 1e6:.0f} MB",
            str(proof.rounds),
            f"{proof.outage_s:.1f} s ± {proof.outage_uncertainty_s:.0f}",
            f"{proof.forecast_s:.1f} s" if proof.forecast_s is not None else "-",
            str(proof.records_lost),
            "yes" if proof.digests_equal else "NO",
            str(proof.leftovers),
        )
    return table


def _stream_table(proofs: list[Proof]) -> Table:
    table = Table(title="What the guests noticed of streaming")
    for name in ("mode", "all data there after", "hit rate", "misses", "miss p50", "miss p99"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for proof in proofs:
        status = proof.report.status
        figures, outage = status.stream, status.outage
        if figures is None or outage is None or outage.started_at is None or status.hydrated_at is None:
            continue
        table.add_row(
            proof.mode,
            f"{(status.hydrated_at - outage.started_at).total_seconds():.1f} s",
            "-" if figures.hit_rate is None else f"{100 * figures.hit_rate:.1f} %",
            str(figures.misses),
            "-" if figures.miss_p50_ms is None else f"{figures.miss_p50_ms:.1f} ms",
            "-" if figures.miss_p99_ms is None else f"{figures.miss_p99_ms:.1f} ms",
        )
    return table


async def _stream(stage: Stage, teller: Teller, client: Client) -> list[Proof]:
    """The same content streamed twice: without prefetch, then with it and with the reads that a drill has recorded."""
    proofs: list[Proof] = []
    teller.say("the same content streamed: the guest boots at B at once and fetches what it asks for")
    plain = await asyncio.to_thread(make_guest, stage, "app-stream", reads=READS)
    await asyncio.sleep(3)
    plan = demo_plan("app-stream", "streaming", bandwidth_bytes_per_s=STREAM_BYTES_PER_S, stream={"prefetch": False})
    proofs.append(await migrate(client, stage, plain, plan, on_status=teller.status, label="stream, plain"))
    await asyncio.to_thread(plain.destroy, "b")
    ahead = await asyncio.to_thread(make_guest, stage, "app-ahead", reads=READS)
    await asyncio.sleep(3)
    drill = {"networks": {"*": "drill"}, "timeout_s": 120.0}
    plan = demo_plan("app-ahead", "streaming", bandwidth_bytes_per_s=STREAM_BYTES_PER_S, drill=drill)
    if stage.lab.has_network("b"):
        report = await rehearse(client, plan)
        boot_s = report.drill.boot_s if report.drill is not None else None
        took = f"its checks passed after {boot_s:.1f} s" if boot_s is not None else "its checks passed"
        teller.say(f"app-ahead: drilled on an isolated network while it ran on; {took}; its reads are kept")
    else:
        teller.say("this machine can have no isolated network: no drill")
    proofs.append(await migrate(client, stage, ahead, plan, on_status=teller.status, label="stream, ahead"))
    await asyncio.to_thread(ahead.destroy, "b")
    return proofs


async def _play(stage: Stage, teller: Teller) -> list[Proof]:
    teller.say("starting Temporal and two KVM clouds (A and B, a libvirtd each)")
    client: Client = await stage.up()
    await asyncio.to_thread(stage.start_worker)
    teller.say(f"Temporal UI: {_ui(stage)}")
    proofs: list[Proof] = []
    teller.say("a guest boots on A and begins to write records")
    cold = await asyncio.to_thread(make_guest, stage, "app-cold")
    await asyncio.sleep(3)
    plan = demo_plan("app-cold", "cold", bandwidth_bytes_per_s=LINK_BYTES_PER_S)
    proofs.append(await migrate(client, stage, cold, plan, on_status=teller.status))
    await asyncio.to_thread(cold.destroy, "b")
    teller.say("the same content again, incrementally, with the worker killed on the way")
    warm = await asyncio.to_thread(make_guest, stage, "app-live")
    plan = demo_plan("app-live", "incremental", bandwidth_bytes_per_s=LINK_BYTES_PER_S)

    async def disturb(handle: WorkflowHandle[Any, MigrationReport]) -> None:
        await _kill_in_baseline(stage, teller, handle)

    proofs.append(await migrate(client, stage, warm, plan, on_status=teller.status, disturb=disturb))
    await asyncio.to_thread(warm.destroy, "b")
    proofs += await _stream(stage, teller, client)
    teller.say("the same content on storage that both clouds see: the disk changes hands, nothing is copied")
    shared = await asyncio.to_thread(make_guest, stage, "app-shared", pool="shared")
    await asyncio.sleep(3)
    plan = demo_plan("app-shared", "dual-attach", storage={"shared": "shared"})
    proofs.append(await migrate(client, stage, shared, plan, on_status=teller.status))
    return proofs


def _end_kept() -> int:
    return Stage.at(KEPT.resolve()).end_kept()


def _clear(stage: Stage) -> None:
    stage.down()
    shutil.rmtree(stage.directory, ignore_errors=True)


def _ui(stage: Stage) -> str:
    return stage.server.ui_url if stage.own_server else "(the Web UI of your server)"


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labs.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave Temporal, clouds and guests up to explore")
    parser.add_argument("--end", action="store_true", help="end what --keep has left up")
    options = parser.parse_args()
    teller = Teller()
    if options.end:
        ended = await asyncio.to_thread(_end_kept)
        teller.say(f"ended {ended} processes and the clouds")
        return 0
    directory = KEPT if options.keep else Path(tempfile.mkdtemp(prefix="whimbrel-demo-"))
    # A server that the environment names comes first; else one of our own.
    own_server = not {"TEMPORAL_ADDRESS", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE"} & os.environ.keys()
    stage = Stage.at(directory.resolve(), own_server=own_server)
    if options.keep and await asyncio.to_thread(_end_kept):
        teller.say("ended an earlier demo that was kept")
    try:
        proofs = await _play(stage, teller)
    except (RuntimeError, LabError, WhimbrelError, OSError) as error:
        await asyncio.to_thread(stage.down)
        teller.console.print(f"[bold red]the demo failed:[/bold red] {error}")
        teller.console.print(f"what to do: read the logs in {stage.directory}", soft_wrap=True)
        return 1
    except BaseException:
        await asyncio.to_thread(_clear, stage)
        raise
    teller.console.print(_table(proofs))
    teller.console.print(_stream_table(proofs))
    closed = "" if options.keep or not own_server else " (closed now; make demo KEEP=1 leaves it up to look at)"
    teller.console.print(f"Temporal UI: {_ui(stage)}{closed}")
    for proof in proofs:
        page = f"namespaces/default/workflows/{proof.workflow.replace('/', '%2F')}"
        teller.console.print(f"  {_ui(stage)}/{page}", soft_wrap=True)
    if options.keep:
        stage.keep()
        teller.console.print("everything is still up; make demo-end ends it. To look around:")
        address = stage.environment.get("TEMPORAL_ADDRESS", "")
        teller.console.print(f"  export TEMPORAL_ADDRESS={address} WHIMBREL_CONFIG={stage.config}", soft_wrap=True)
        teller.console.print("  .venv/bin/whimbrel status")
    else:
        await asyncio.to_thread(_clear, stage)
    good = all(proof.good for proof in proofs)
    teller.console.print("[bold green]proved[/bold green]" if good else "[bold red]NOT proved[/bold red]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(_main)
