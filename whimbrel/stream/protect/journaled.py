"""``journal``: a change is acknowledged when it is in the local journal and at the target; the shadow follows.

Per batch: mark its chunks (``intent``), put it into the journal, change the target, acknowledge as the lag allows. A
guest's flush makes the journal durable before the target. So:

The process died: the journal in the page cache has all that was acknowledged. Its last batch may be at the target in
part; it is made there again. The host crashed: the journal that is left ends somewhere after the last flush, and the
shadow has none of what lay behind. The shadow is brought up to that end, and the chunks in which the target may be
older or newer are copied from there.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from whimbrel.errors import WhimbrelError
from whimbrel.stream.chunkmap import Run
from whimbrel.stream.protect.change import Change, Done
from whimbrel.stream.protect.follower import PAUSE_S, Follower
from whimbrel.stream.protect.intent import Intent
from whimbrel.stream.protect.journal import Journal
from whimbrel.stream.protect.lag import Lag
from whimbrel.stream.protect.landing import land, made_exact
from whimbrel.stream.protect.sequence import Sequence
from whimbrel.stream.protect.settle import Settling
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.source import Stopped
from whimbrel.stream.store import Store


class Journaled:
    """See ``Protection``."""

    mode = "journal"

    def __init__(
        self, store: Store, intent: Intent, shadow: Shadow, journal: Journal, *, max_lag_bytes: int, max_lag_s: float
    ) -> None:
        self._store = store
        self._intent = intent
        self.shadow = shadow
        self._journal = journal
        self._stopping = threading.Event()
        self._lag = Lag(max_lag_bytes, max_lag_s, applied=journal.applied, held=journal.held_at_open)
        self._follower = Follower(journal, shadow, self._lag, self._stopping)
        self._settling = JournalSettling(store, intent, shadow, journal, self._follower)
        self._sequence = Sequence(self._settle, self._carry_out)
        self._journal_error: WhimbrelError | None = None
        store.before_sync = self._before_sync
        store.after_sync = intent.synced

    def start(self) -> None:
        """Begin."""
        self._sequence.start()

    def stop(self) -> None:
        """End; what the shadow lacks stays in the journal."""
        self._stopping.set()
        self.shadow.stop()
        self._lag.stop()
        self._sequence.stop()
        self._follower.stop()

    def close(self) -> None:
        """Give the files back; after ``stop`` and the target's last sync."""
        self._intent.close()
        self._journal.close()

    def submit(self, change: Change) -> None:
        """See Protection."""
        self._sequence.submit(change)

    def holds(self, first: int, last: int) -> bool:
        """See Protection."""
        return self._settling.holds(first, last)

    def when_settled(self, go: Done) -> None:
        """See Protection."""
        self._settling.when_settled(go)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that was asked for is in the shadow, durably; False if that takes longer."""
        deadline = time.monotonic() + timeout_s
        return self._sequence.idle(timeout_s) and self._lag.reached(self._journal.last, deadline - time.monotonic())

    def let_go(self) -> bool:
        """From now on writes need no shadow; False while it is needed to make a crash of the host good."""
        if self._settling.reads_shadow:
            return False
        self.shadow.give_up()
        return True

    def wants_sync(self) -> bool:
        """Whether a sync of the target would take marks away."""
        return self._intent.marks > 0

    def report(self) -> dict[str, object]:
        """For the status. ``lag`` is what was acknowledged and the shadow lacks; a change counts as 4 KiB at least."""
        lag_bytes, lag_s = self._lag.behind
        waiting_bytes, waiting_s = self._sequence.waiting()
        error = self._lag.error or self._journal_error or self._follower.error
        rate = self._lag.rate_bytes_per_s
        return {
            "settled": self._sequence.settled,
            "unsettled_chunks": self._settling.open_chunks,
            "needs_shadow": self._settling.reads_shadow,
            "lag_bytes": lag_bytes,
            "lag_s": round(lag_s, 3),
            "room_bytes": self._lag.room_bytes,
            "rate_bytes_per_s": None if rate is None else round(rate),
            "waiting_bytes": waiting_bytes,
            "waiting_s": round(waiting_s, 3),
            "slowed_s": round(self._lag.waited_s, 3),
            "journal_bytes": self._journal.size_bytes,
            "journal_error": None if error is None else f"{error.code}: {error.message}",
            "lacking_changes": self._journal.last - self._journal.applied,
            "writes": self._sequence.changes,
            "batches": self._sequence.batches,
            "shadow_batches": self._follower.batches,
            "marked_chunks": self._intent.marks,
        }

    def _settle(self) -> None:
        self._settling.run()
        self._follower.start()

    def _before_sync(self) -> int:
        token = self._intent.before_sync()
        self._journal.barrier()
        # Before the target: a mark that goes says that the journal has the chunk's changes for good.
        self._journal.sync()
        return token

    def _carry_out(self, batch: list[Change]) -> None:
        runs: list[Run] = [self._store.span(change.offset, change.length) for change in batch]
        self._intent.mark(runs)
        exact = [made_exact(self._store, change) for change in batch]
        self._put(exact)
        errors = [land(self._store, change) for change in exact]
        self._intent.landed(runs)
        first = self._journal.last - len(batch) + 1
        self._follower.wake()
        for number, (change, error) in enumerate(zip(batch, errors, strict=True), first):
            self._lag.admit(number, 0 if change.data is None else change.length)
            change.done(error)

    def _put(self, changes: list[Change]) -> None:
        """Into the journal; again while there is no room. Raises Stopped, Unavailable (it is broken)."""
        while True:
            try:
                self._journal.put(changes)
            except WhimbrelError as error:
                if self._journal.broken:
                    raise
                self._journal_error = error
                if self._stopping.wait(PAUSE_S):
                    raise Stopped from None
            else:
                self._journal_error = None
                return


class JournalSettling(Settling):
    """What the journal still holds takes the place of a comparison."""

    def __init__(self, store: Store, intent: Intent, shadow: Shadow, journal: Journal, follower: Follower) -> None:
        self._journal = journal
        self._follower = follower
        # Only the last batch can be at the target in part; chunks of it may not be read while it is made again.
        torn = bool(intent.flying()) and not intent.host_crashed
        batch = [store.span(change.offset, change.length) for change in journal.last_batch()] if torn else []
        super().__init__(store, intent, shadow, follower.ending, batch)

    def _make_alike(self) -> None:
        if self._intent.host_crashed:
            self._follower.catch_up()
            super()._make_alike()
            return
        for change in self._journal.last_batch():
            if change.data is not None:
                self._persist(partial(self._store.write, change.offset, change.data))
            elif change.length:
                self._persist(partial(self._store.zero, change.offset, change.length, may_punch=change.may_punch))
