"""Which chunks the background fetches next: a policy, and the cold sweep that every policy ends with.

A policy proposes; the map decides. What it leaves out is found by the final sweep, which asks the map itself, so a
policy may forget chunks, name local ones, or repeat itself without harm.
"""

from __future__ import annotations

import threading
from typing import Literal, Protocol

from whimbrel.stream.chunkmap import ChunkMap, Run

Access = Literal["read", "write", "trim"]


class Order(Protocol):
    """The order of the background. ``next_run`` is called by one thread, ``accessed`` by any."""

    def next_run(self, longest: int) -> Run | None:
        """At most ``longest`` chunks to fetch next; None: nothing to propose now. Local ones are skipped over."""
        ...

    def next_urgent(self, longest: int) -> Run | None:
        """As ``next_run``, but only what the guest will want soon, so surely that a miss may wait a little for it."""
        ...

    def accessed(self, first: int, last: int, access: Access) -> None:
        """The guest touched the chunks from ``first`` up to and without ``last``. Must be quick."""
        ...


class ColdSweep:
    """From one end of the disk to the other, and again from the start for what was left."""

    def __init__(self, chunkmap: ChunkMap) -> None:
        self._map = chunkmap
        self._cursor = 0

    def next_run(self, longest: int) -> Run | None:
        """See Order; None only when the whole disk is local, or nothing but skipped chunks is left in this sweep."""
        run = self._map.missing_run(self._cursor, self._map.chunks, longest)
        if run is None:
            self._cursor = 0
            return None
        self._cursor = run[1]
        return run

    def next_urgent(self, longest: int) -> Run | None:
        """See Order: nothing is known."""
        return None

    def accessed(self, first: int, last: int, access: Access) -> None:
        """Nothing to learn."""


class Sweeping:
    """A policy followed by cold sweeps: what the background runs."""

    def __init__(self, chunkmap: ChunkMap, policy: Order | None = None) -> None:
        self._sweep = ColdSweep(chunkmap)
        self._map = chunkmap
        self._lock = threading.Lock()
        self._policy = policy

    def use(self, policy: Order | None) -> None:
        """Change the policy while it runs; None: the cold sweep alone."""
        with self._lock:
            self._policy = policy

    def next_run(self, longest: int) -> Run | None:
        """See Order; None: nothing now. The caller asks again while the map has missing chunks."""
        with self._lock:
            policy = self._policy
        while policy is not None and (run := policy.next_run(longest)) is not None:
            if not self._map.is_local(*run):
                return run
        return self._sweep.next_run(longest)

    def next_urgent(self, longest: int) -> Run | None:
        """See Order."""
        with self._lock:
            policy = self._policy
        while policy is not None and (run := policy.next_urgent(longest)) is not None:
            if not self._map.is_local(*run):
                return run
        return None

    def accessed(self, first: int, last: int, access: Access) -> None:
        """See Order."""
        policy = self._policy
        if policy is not None:
            policy.accessed(first, last, access)
