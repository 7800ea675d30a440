"""From the configuration to the order that the background follows.

The history is read by a thread, for a long one takes seconds and the guest is not to wait for it; a short one is there
before the server listens. A trace that cannot be read is told in the status and the log, and does not hinder the guest.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from whimbrel.errors import WhimbrelError
from whimbrel.stream.chunkmap import ChunkMap
from whimbrel.stream.config import PrefetchConfig
from whimbrel.stream.fetcher import Fetcher
from whimbrel.stream.hydration import Sweeping
from whimbrel.stream.prefetch.blend import Blend
from whimbrel.stream.prefetch.bootset.predictor import BegunFiles, BootSet
from whimbrel.stream.prefetch.bootset.scout import Scout
from whimbrel.stream.prefetch.correlation import Correlation, learn, touches
from whimbrel.stream.prefetch.history import History, HistoryAhead, first_uses, merged
from whimbrel.stream.prefetch.locality import Locality
from whimbrel.stream.prefetch.predictor import Predictor
from whimbrel.stream.prefetch.runs import Runs
from whimbrel.stream.prefetch.trace import Trace, read_trace
from whimbrel.stream.source import Source
from whimbrel.stream.store import Store

READING_S: Final = 0.5
"""So long the start waits for the history."""

log = logging.getLogger(__name__)


class Prefetch:
    """Puts the blend that the configuration asks for into ``order``, and tells about it."""

    def __init__(self, config: PrefetchConfig, chunkmap: ChunkMap, order: Sweeping) -> None:
        self._config = config
        self._map = chunkmap
        self._order = order
        self._blend: Blend | None = None
        self._errors: list[str] = []
        self._histories = 0
        self._reading = bool(config.history)
        self._found = BootSet() if config.bootset else None
        self._scout: Scout | None = None
        self._use([])
        if config.history:
            thread = threading.Thread(target=self._read, name="history", daemon=True)
            thread.start()
            thread.join(READING_S)

    def look(self, store: Store, source: Source, fetcher: Fetcher) -> None:
        """Find the boot set in the source's file systems if there is no history. Once; ``stop`` ends it."""
        if self._found is None:
            return
        self._scout = Scout(
            store,
            source,
            self._found,
            paused=lambda: self._reading or fetcher.paused,
            needed=lambda: not self._histories,
            pass_through=fetcher.pass_background,
            landed=lambda count: fetcher.statistics.add(background_bytes=count),
        )
        self._scout.start()

    def stop(self) -> None:
        """End, after the source was stopped."""
        if self._scout is not None:
            self._scout.stop()

    def report(self) -> dict[str, object]:
        """For the status."""
        return {
            "reading_history": self._reading,
            "history_errors": list(self._errors),
            "boot_set": None if self._scout is None else self._scout.report(),
            "predictors": {} if self._blend is None else self._blend.report(),
        }

    def _read(self) -> None:
        traces = []
        try:
            for path in self._config.history:
                try:
                    traces.append(read_trace(Path(path)))
                except WhimbrelError as error:
                    log.warning("history.unusable", extra={"path": path, "error": str(error)})
                    self._errors.append(f"{error.code}: {error.message}")
            if traces:
                self._use(traces)
        finally:
            self._reading = False

    def _use(self, traces: list[Trace]) -> None:
        self._histories = len(traces)
        predictors = predictors_for(
            traces,
            self._map.chunk_bytes,
            bootset=None if traces else self._found,
            sequential=self._config.sequential,
            locality=self._config.locality,
            correlation=self._config.correlation,
            history=self._config.ordered,
        )
        if predictors:
            self._blend = Blend(self._map, predictors)
            self._order.use(self._blend)


def predictors_for(
    traces: list[Trace],
    chunk_bytes: int,
    *,
    bootset: BootSet | None = None,
    sequential: bool = True,
    locality: bool = True,
    correlation: bool = True,
    history: bool = True,
) -> list[Predictor]:
    """The predictors that these traces allow, the most urgent first.

    Measured: with this order a history of something else costs little (nearer predictions go ahead of it), and a
    history that is right loses nothing.
    """
    found: list[Predictor] = []
    order = merged(first_uses(trace, chunk_bytes) for trace in traces) if history else []
    if order:
        found.append(HistoryAhead(order))
    if traces and correlation:
        found.append(Correlation(learn(touches(trace, chunk_bytes) for trace in traces)))
    if bootset is not None:
        found += [BegunFiles(bootset), bootset]
    if sequential:
        found.append(Runs())
    if locality:
        found.append(Locality())
    if order:
        found.append(History(order))
    return found
