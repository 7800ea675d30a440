"""What a predictor is to the blend, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from whimbrel.stream.chunkmap import Run
from whimbrel.stream.hydration import Access

Wanted = Callable[[int], bool]
"""Whether it makes sense to propose this chunk: it is on the disk, missing, and nobody has proposed it yet."""


class Proposal(NamedTuple):
    """Chunks to fetch next, and after how many touches from now the guest should have come to them."""

    run: Run
    within: int


class Predictor(Protocol):
    """Used by one thread only. Proposes each chunk that it finds wanted at most once per reason."""

    name: str

    def accessed(self, first: int, last: int, access: Access) -> None:
        """The guest touched the chunks from ``first`` up to and without ``last``."""
        ...

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        """At most ``longest`` consecutive wanted chunks; None: nothing now. Ends after a bounded amount of work."""
        ...
