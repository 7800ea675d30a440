"""``mirror``: a change is acknowledged when it is at the target, and durable in the shadow.

Per batch: mark its chunks (``intent``), change the target, send all to the shadow, one flush there, acknowledge. A
shadow that is away is waited for; reads go on meanwhile.
"""

from __future__ import annotations

import threading

from whimbrel.errors import WhimbrelError
from whimbrel.stream.chunkmap import Run
from whimbrel.stream.protect.change import Change, Done
from whimbrel.stream.protect.intent import Intent
from whimbrel.stream.protect.landing import land, made_exact
from whimbrel.stream.protect.sequence import Sequence
from whimbrel.stream.protect.settle import Settling
from whimbrel.stream.protect.shadow import Shadow
from whimbrel.stream.store import Store


class Mirror:
    """See ``Protection``."""

    mode = "mirror"

    def __init__(self, store: Store, intent: Intent, shadow: Shadow) -> None:
        self._store = store
        self._intent = intent
        self.shadow = shadow
        self._stopping = threading.Event()
        self._settling = Settling(store, intent, shadow, self._stopping)
        self._sequence = Sequence(self._settling.run, self._carry_out)
        store.before_sync = intent.before_sync
        store.after_sync = intent.synced

    def start(self) -> None:
        """Begin."""
        self._sequence.start()

    def stop(self) -> None:
        """End; changes that were not acknowledged may or may not have been made."""
        self._stopping.set()
        self.shadow.stop()
        self._sequence.stop()

    def close(self) -> None:
        """Give the files back; after ``stop`` and the target's last sync."""
        self._intent.close()

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
        """Wait until all that was asked for is in the shadow; False if that takes longer."""
        return self._sequence.idle(timeout_s)

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
        """For the status. ``lag`` is what is not acknowledged yet: in this mode nothing else can be missing."""
        lag_bytes, lag_s = self._sequence.waiting()
        return {
            "settled": self._sequence.settled,
            "unsettled_chunks": self._settling.open_chunks,
            "needs_shadow": self._settling.reads_shadow,
            "lag_bytes": lag_bytes,
            "lag_s": round(lag_s, 3),
            "writes": self._sequence.changes,
            "batches": self._sequence.batches,
            "marked_chunks": self._intent.marks,
        }

    def _carry_out(self, batch: list[Change]) -> None:
        runs: list[Run] = [self._store.span(change.offset, change.length) for change in batch]
        self._intent.mark(runs)
        made: list[Change] = []
        errors: list[WhimbrelError | None] = []
        for change in batch:
            exact = made_exact(self._store, change)
            errors.append(land(self._store, exact))
            made.append(exact)
        self.shadow.apply(made)
        self._intent.landed(runs)
        for change, error in zip(batch, errors, strict=True):
            change.done(error)
