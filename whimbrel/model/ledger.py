"""The ledger: every object that a migration makes on either cloud, written down before it is made."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from whimbrel.model.endpoint import Frozen

ObjectKind = Literal[
    "volume", "vm", "checkpoint", "point", "writer", "port", "manifest", "stream", "shadow", "release", "fence"
]


class Fate(StrEnum):
    """What has become of an object, as far as it was read back."""

    INTENDED = "intended"
    CREATED = "created"
    GONE = "gone"
    KEPT = "kept"


class LedgerEntry(Frozen):
    """One object: found again by (cloud, kind, name)."""

    cloud: str
    kind: ObjectKind
    name: str
    fate: Fate
    noted_at: datetime
    owner: str = ""
    """The VM or pool it hangs on, where its name alone does not find it."""


class Ledger(Frozen):
    """An ordered, append-or-replace list of entries."""

    entries: tuple[LedgerEntry, ...] = ()

    def note(self, entry: LedgerEntry) -> Ledger:
        """This ledger with ``entry`` added, or in place of the earlier entry for the same object."""
        same = [
            index
            for index, old in enumerate(self.entries)
            if (old.cloud, old.kind, old.name) == (entry.cloud, entry.kind, entry.name)
        ]
        if not same:
            return Ledger(entries=(*self.entries, entry))
        entries = list(self.entries)
        entries[same[0]] = entry
        return Ledger(entries=tuple(entries))

    def open_entries(self) -> tuple[LedgerEntry, ...]:
        """Objects that may still exist and are not meant to stay."""
        return tuple(entry for entry in self.entries if entry.fate in {Fate.INTENDED, Fate.CREATED})
