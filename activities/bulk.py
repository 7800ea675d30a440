"""Supervision of a long transfer: two clocks (alive, moving), cancellation, and marks for the workflow.

Liveness is a heartbeat every two seconds whatever happens, so that a dead worker is noticed within the heartbeat
timeout. Movement is watched apart: a transfer that has not moved a byte for ``no_progress_s`` fails its attempt.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from types import TracebackType

from temporalio import activity
from temporalio.exceptions import CancelledError

from whimbrel.contracts.heartbeat import CopyBeat, CopyMark, Stage
from whimbrel.errors import Unavailable

BEAT_S = 2.0
POLL_S = 0.25
MARK_EVERY_PERCENT = 10
MARK_MIN_S = 10.0

Notify = Callable[[str, str, CopyMark], None]
"""Sends a mark to a workflow: (workflow id, run id, mark); must not block or raise."""


def _sent_before(info: activity.Info) -> int:
    for detail in info.heartbeat_details:
        if isinstance(detail, dict) and isinstance(detail.get("sent_bytes"), int):
            return int(detail["sent_bytes"])
    return 0


class BulkWatch:
    """Context manager around one bulk activity; ``should_stop`` and ``moved`` may be called from any thread."""

    def __init__(self, disk: str, *, no_progress_s: float, notify: Notify | None = None) -> None:
        self._beat = CopyBeat(disk=disk)
        self._no_progress_s = no_progress_s
        self._notify = notify
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._why = ""
        self._moved_at = time.monotonic()
        self._marked_percent = 0
        self._marked_at = time.monotonic()
        info = activity.info()
        self.sent_before_bytes = _sent_before(info)
        """What earlier attempts told they had sent; for the figures only."""
        self._workflow = (info.workflow_id or "", info.workflow_run_id or "")
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._watch,), name=f"watch-{disk}", daemon=True)

    def __enter__(self) -> BulkWatch:
        activity.heartbeat(self._beat)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def should_stop(self) -> bool:
        """Whether the transfer is to end now; ``raise_stopped`` then says why."""
        return self._stop.is_set()

    def stage(self, stage: Stage) -> None:
        """What is being done now."""
        self._beat = self._beat.model_copy(update={"stage": stage})
        self._moved_at = time.monotonic()

    def moved(
        self, *, done: int, total: int, sent: int = 0, rate_bytes_per_s: float = 0.0, eta_s: float | None = None
    ) -> None:
        """Progress in bytes."""
        if done != self._beat.done_bytes:
            self._moved_at = time.monotonic()
        self._beat = self._beat.model_copy(
            update={
                "done_bytes": done,
                "total_bytes": total,
                "sent_bytes": self.sent_before_bytes + sent,
                "rate_bytes_per_s": rate_bytes_per_s,
                "eta_s": eta_s,
            }
        )

    def raise_stopped(self) -> None:
        """Turn the reason for a stop into the right exception: a cancellation, or a retryable error."""
        if self._why == "cancelled":
            raise CancelledError(f"copy of {self._beat.disk} stopped; what was copied is kept")
        if self._why == "shutdown":
            raise Unavailable(
                f"the worker is shutting down; the copy of {self._beat.disk} goes on elsewhere", disk=self._beat.disk
            )
        raise Unavailable(
            f"no byte of {self._beat.disk} moved for {self._no_progress_s:.0f} s",
            action="look at the source's and the target's storage; it is tried again",
            disk=self._beat.disk,
        )

    def _watch(self) -> None:
        beat_at = time.monotonic()
        while not self._ended.wait(POLL_S):
            now = time.monotonic()
            if now - beat_at >= BEAT_S:
                activity.heartbeat(self._beat)
                beat_at = now
                self._mark(now)
            if not self._stop.is_set():
                self._decide(now)

    def _decide(self, now: float) -> None:
        if activity.is_cancelled():
            self._why = "cancelled"
        elif activity.is_worker_shutdown():
            self._why = "shutdown"
        elif now - self._moved_at > self._no_progress_s:
            self._why = "stalled"
        else:
            return
        self._stop.set()

    def _mark(self, now: float) -> None:
        beat = self._beat
        if self._notify is None or beat.total_bytes <= 0 or now - self._marked_at < MARK_MIN_S:
            return
        percent = int(100 * beat.done_bytes / beat.total_bytes)
        if percent >= self._marked_percent + MARK_EVERY_PERCENT:
            self._marked_percent, self._marked_at = percent, now
            mark = CopyMark(disk=beat.disk, percent=percent, rate_bytes_per_s=beat.rate_bytes_per_s, eta_s=beat.eta_s)
            self._notify(*self._workflow, mark)
