"""Choosing a stated share of pieces at random, reproducibly, without touching those that are not chosen."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from whimbrel.dataplane.scan import Span


class Sampler:
    """Each piece is chosen independently with probability ``fraction``; the gaps between choices are geometric."""

    def __init__(self, fraction: float, seed: int) -> None:
        if not 0 < fraction <= 1:
            raise ValueError("a sample is a fraction above 0 and at most 1")
        self._fraction = fraction
        self._random = random.Random(seed)  # noqa: S311 - a sample to be repeated, not a secret
        self._skip = self._gap()

    def pick(self, count: int) -> Iterator[int]:
        """Indices chosen among the next ``count`` pieces."""
        at = self._skip
        while at < count:
            yield at
            at += 1 + self._gap()
        self._skip = at - count

    def pieces(self, span: Span, piece_bytes: int) -> Iterator[Span]:
        """Chosen pieces of a span that starts at a multiple of ``piece_bytes``."""
        for index in self.pick(-(-span.length // piece_bytes)):
            offset = span.offset + index * piece_bytes
            yield Span(offset, min(piece_bytes, span.offset + span.length - offset), span.zero)

    def _gap(self) -> int:
        if self._fraction == 1:
            return 0
        return int(math.log(1 - self._random.random()) / math.log(1 - self._fraction))
