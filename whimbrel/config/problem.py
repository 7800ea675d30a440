"""What is wrong with a file: one line per problem, all of them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whimbrel.errors import InvalidPlan

Loc = tuple[str | int, ...]
"""Keys and list positions from the top of a document: ``("vms", 0, "name")``."""


def dotted(loc: Loc) -> str:
    """``("vms", 0, "name")`` as ``vms[0].name``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is and what it is; never the value of a secret."""

    file: str
    line: int | None
    loc: Loc
    what: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {dotted(self.loc)}: {self.what}" if self.loc else f"{where}: {self.what}"


class InvalidFile(InvalidPlan):
    """A file of the operator's that cannot be used as written; ``problems`` has one entry per mistake."""

    default_action = "correct the file; nothing was touched"

    def __init__(self, problems: Sequence[Problem], *, action: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), action=action)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    by_folded = {name.lower().replace("-", "_"): name for name in known}
    hits = difflib.get_close_matches(word.lower().replace("-", "_"), list(by_folded), n=1, cutoff=0.6)
    return by_folded[hits[0]] if hits else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``word``: the nearest known one, or all of them."""
    names = sorted(known)
    near = nearest(word, names)
    if near is not None:
        return f"did you mean {near}?"
    return f"known: {', '.join(names)}" if names else "none is known"
