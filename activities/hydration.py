"""Watching the streaming servers of one migration: alive, fast enough, complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from temporalio import activity
from temporalio.exceptions import CancelledError

from activities.bulk import BEAT_S, MARK_EVERY_PERCENT, MARK_MIN_S, Notify
from whimbrel.contracts.heartbeat import CopyBeat, CopyMark, StreamMark
from whimbrel.contracts.stream_io import HydrateInput
from whimbrel.errors import QuotaExceeded, Unavailable
from whimbrel.model.stream import StreamFigures
from whimbrel.ports.compute import ComputePort
from whimbrel.ports.serving import ServingPort
from whimbrel.stream.control import ask
from whimbrel.stream.place import Place

LOOK_S = 0.5
YIELD_WINDOW_BYTES = 64 << 10
"""One chunk in flight: the least that still makes progress."""
CALM_S = 15.0
"""Misses must be fast for so long before the background goes on as before."""

NotifyStream = Callable[[str, str, StreamMark], None]
"""Sends a mark to a workflow: (workflow id, run id, mark); must not block or raise."""

log = structlog.get_logger("whimbrel.stream")
Status = Mapping[str, Any]


class Hydration:
    """One attempt of the activity."""

    def __init__(
        self,
        job: HydrateInput,
        places: Sequence[Place],
        launch: Callable[[Path], None],
        *,
        serving: ServingPort | None = None,
        compute: ComputePort | None = None,
        notify: Notify | None = None,
        notify_stream: NotifyStream | None = None,
    ) -> None:
        self._serving = serving
        self._compute = compute
        self._job = job
        self._places = places
        self._launch = launch
        self._notify = notify
        self._notify_stream = notify_stream
        info = activity.info()
        self._workflow = (info.workflow_id or "", info.workflow_run_id or "")
        self._pids: dict[str, int] = {}
        self._arriving = {place.disk for place in places}
        self._starts = 0
        self._slow_since: float | None = None
        self._calm_since: float | None = None
        self._yielding = False
        self._marked_percent = -1
        self._marked_at = 0.0
        self._looked_at = 0.0

    def run(self) -> StreamFigures:
        """Until everything is there; see ``StreamActivities.hydrate``."""
        beat_at = 0.0
        for place in self._places:
            self._set_up(place)
        while True:
            found = [self._look(place) for place in self._places]
            figures = figures_of(found).model_copy(update={"server_starts": self._starts})
            now = time.monotonic()
            if now - beat_at >= BEAT_S or not (figures.missing_bytes or self._job.keep):
                activity.heartbeat(beat_of(self._places, figures))
                beat_at = now
            self._mark(figures, now)
            if not figures.missing_bytes and not self._job.keep:
                for place in self._places:
                    ask(place.control, "flush")
                return figures
            self._check(found)
            self._share(found)
            self._wake(now)
            self._heed_latency(found, figures, now)
            self._rest()

    def close(self) -> None:
        """The background goes on as it was found."""
        if self._yielding:
            self._window(None)

    def _rest(self) -> None:
        until = time.monotonic() + LOOK_S
        while time.monotonic() < until:
            if activity.is_cancelled():
                raise CancelledError("the hydration is no longer watched; the servers go on")
            if activity.is_worker_shutdown():
                raise Unavailable("the worker is shutting down; the hydration is watched elsewhere")
            time.sleep(0.05)

    def _set_up(self, place: Place) -> None:
        self._look(place)
        if not self._job.background:
            ask(place.control, "pause")
        self._limit(place)
        if self._job.background:
            ask(place.control, "resume")

    def _limit(self, place: Place) -> None:
        """The VM's limit is shared by its disks; a server that starts has all of it, as it was when it was made."""
        limit = self._job.bandwidth_bytes_per_s
        ask(place.control, "set-bandwidth", bytes_per_s=limit / max(len(self._arriving), 1) if limit else None)

    def _share(self, found: Sequence[Status]) -> None:
        """What a disk that has arrived leaves of the limit is the others'."""
        arriving = {place.disk for place, now in zip(self._places, found, strict=True) if now["missing_chunks"]}
        if arriving == self._arriving:
            return
        self._arriving = arriving
        for place in self._places:
            if place.disk in arriving and self._job.bandwidth_bytes_per_s:
                self._limit(place)

    def _look(self, place: Place) -> Status:
        """The server's status; one that does not answer is started again."""
        try:
            status = ask(place.control, "status")
        except Unavailable:
            self._launch(place.config)
            status = ask(place.control, "status")
        pid = int(status["pid"])
        before = self._pids.get(place.disk)
        if before is not None and before != pid:
            self._starts += 1
            log.warning("stream.started_again", disk=place.disk, pid=pid)
            self._set_up_again(place)
        self._pids[place.disk] = pid
        return status

    def _set_up_again(self, place: Place) -> None:
        if not self._job.background:
            ask(place.control, "pause")
        self._limit(place)
        if self._yielding:
            ask(place.control, "set-window", bytes=YIELD_WINDOW_BYTES)

    def _check(self, found: Sequence[Status]) -> None:
        patience = self._job.source_patience_s
        for place, status in zip(self._places, found, strict=True):
            full = status.get("target_error")
            if full:
                raise QuotaExceeded(
                    f"disk {place.disk} cannot be written at the target: {full}",
                    action="make room in the target pool, then resume; the guest is waiting and nothing is lost",
                    disk=place.disk,
                )
            for end, facts in (("source", status["source"]), ("shadow", status.get("protect") or {})):
                away = facts.get("away_s")
                if away is not None and away > patience:
                    raise Unavailable(
                        f"the {end} of disk {place.disk} has been away for {away:.0f} s:"
                        f" {facts.get('error') or facts.get('shadow_error')}",
                        action=f"bring the source's host back: the guest waits for its data, and the {end} is"
                        " opened again by itself",
                        disk=place.disk,
                    )

    def _wake(self, now: float) -> None:
        """A VM that was paused while a server was away goes on: all servers answer now."""
        if self._serving is None or self._compute is None or now - self._looked_at < BEAT_S:
            return
        self._looked_at = now
        if self._serving.stalled(self._job.ref):
            log.warning("stream.vm_resumed", vm=self._job.ref)
            self._compute.resume(self._job.ref)

    def _heed_latency(self, found: Sequence[Status], figures: StreamFigures, now: float) -> None:
        """Health-based fallback: while misses hurt, the background keeps one request in flight."""
        recent = [status["statistics"]["miss_latency"].get("recent_p99_ms") for status in found]
        worst_s = max((value for value in recent if value is not None), default=0.0) / 1000
        policy = self._job.policy
        if worst_s > policy.miss_p99_s:
            self._calm_since = None
            self._slow_since = self._slow_since or now
            if not self._yielding and now - self._slow_since >= policy.yield_after_s:
                self._yielding = True
                self._window(YIELD_WINDOW_BYTES)
                self._tell(figures)
            return
        self._slow_since = None
        self._calm_since = self._calm_since or now
        if self._yielding and now - self._calm_since >= CALM_S:
            self._yielding = False
            self._window(None)
            self._tell(figures)

    def _window(self, size_bytes: int | None) -> None:
        for place in self._places:
            try:
                ask(place.control, "set-window", bytes=size_bytes)
            except Unavailable as error:
                log.info("stream.window_not_set", disk=place.disk, error=str(error))

    def _tell(self, figures: StreamFigures) -> None:
        if self._notify_stream is not None:
            self._notify_stream(*self._workflow, StreamMark(figures=figures, slow=self._yielding))

    def _mark(self, figures: StreamFigures, now: float) -> None:
        """Every tenth, so that percent and figures are seen without reading heartbeats."""
        if self._notify is None or not figures.total_bytes or now - self._marked_at < MARK_MIN_S:
            return
        percent = int(100 * (figures.total_bytes - figures.missing_bytes) / figures.total_bytes)
        if percent < self._marked_percent + MARK_EVERY_PERCENT:
            return
        self._marked_percent, self._marked_at = percent, now
        for place in self._places:
            mark = CopyMark(disk=place.disk, percent=percent, rate_bytes_per_s=figures.background_bytes_per_s)
            self._notify(*self._workflow, mark)
        self._tell(figures)


def figures_of(found: Sequence[Status]) -> StreamFigures:
    """All servers' figures in one."""

    def total(*path: str) -> int:
        return sum(int(_at(status, path)) for status in found)

    def worst(name: str) -> float | None:
        values = [status["statistics"]["miss_latency"].get(name) for status in found]
        return max((value for value in values if value is not None), default=None)

    chunk = max((int(status["chunk_bytes"]) for status in found), default=0)
    protects = [status.get("protect") or {} for status in found]
    return StreamFigures(
        disks=len(found),
        total_bytes=total("size_bytes"),
        missing_bytes=min(total("missing_chunks") * chunk, total("size_bytes")),
        hits=total("statistics", "hits"),
        misses=total("statistics", "misses"),
        demand_bytes=total("statistics", "demand_bytes"),
        background_bytes=total("statistics", "background_bytes"),
        demand_bytes_per_s=total("statistics", "demand_bytes_per_s"),
        background_bytes_per_s=total("statistics", "background_bytes_per_s"),
        miss_p50_ms=worst("p50_ms"),
        miss_p95_ms=worst("p95_ms"),
        miss_p99_ms=worst("p99_ms"),
        written_bytes=total("written_chunks") * chunk,
        lag_bytes=sum(int(protect.get("lag_bytes") or 0) for protect in protects),
        lag_s=max((float(protect.get("lag_s") or 0.0) for protect in protects), default=0.0),
        host_crashes=total("host_crashes"),
    )


def _at(status: Status, path: Sequence[str]) -> int | float:
    value: Any = status
    for name in path:
        value = value[name]
    return value  # type: ignore[no-any-return]


def beat_of(places: Sequence[Place], figures: StreamFigures) -> CopyBeat:
    """What ``whimbrel watch`` shows of a hydration."""
    done = figures.total_bytes - figures.missing_bytes
    rate = figures.background_bytes_per_s + figures.demand_bytes_per_s
    return CopyBeat(
        disk=",".join(place.disk for place in places),
        stage="hydrating",
        done_bytes=done,
        total_bytes=figures.total_bytes,
        sent_bytes=figures.demand_bytes + figures.background_bytes,
        rate_bytes_per_s=rate,
        eta_s=figures.missing_bytes / rate if rate > 0 else None,
        stream=figures,
    )
