"""Signals by which a drill borrows the target copy of a running migration, and gives it back."""

from __future__ import annotations

from whimbrel.model.endpoint import Frozen
from whimbrel.model.point import OpenPoint

COPY_WANTED_SIGNAL = "copy_wanted"
COPY_RETURNED_SIGNAL = "copy_returned"
COPY_LENT_SIGNAL = "copy_lent"
COPY_RECALLED_SIGNAL = "copy_recalled"


class CopyWanted(Frozen):
    """To the migration: lend what the target volumes hold."""

    drill: str
    """The drill's migration id: it names this one loan."""
    workflow_id: str
    """Where the answer goes."""
    target: str
    """Cloud on which the drill runs."""


class CopyReturned(Frozen):
    """To the migration: nothing is read any more."""

    drill: str


class CopyLent(Frozen):
    """To the drill: read here."""

    drill: str
    point: OpenPoint


class CopyRecalled(Frozen):
    """To the drill: there is nothing to be read, or not any longer."""

    drill: str
    why: str


class Loan(Frozen):
    """What a migration remembers of a drill that reads its copy, or waits to."""

    wanted: CopyWanted
    point: OpenPoint | None = None
    """None while the round that runs is waited for."""
    returned: bool = False
    """The drill is over; what was frozen can go."""
