"""The operator's verbs: names and arguments of the workflow updates. All answer with a line for the operator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from whimbrel.model.endpoint import Frozen

CUTOVER = "cutover"
PAUSE = "pause"
RESUME = "resume"
SYNC_NOW = "sync_now"
SET_BANDWIDTH = "set_bandwidth"
CONFIRM = "confirm"
ROLLBACK = "rollback"
ABORT = "abort"
VERBS = (CUTOVER, PAUSE, RESUME, SYNC_NOW, SET_BANDWIDTH, CONFIRM, ROLLBACK, ABORT)


class Verb(Frozen):
    """Argument of every verb without one of its own: who asks and why, for the record."""

    by: str = ""
    reason: str = ""
    drop_writes: bool = False
    """Only for ``rollback``: give up what the target wrote, though the plan says ``keep_writes``."""


class SetBandwidth(Frozen):
    """Limit of this migration's copies; None lifts it."""

    bytes_per_s: Annotated[float, Field(gt=0)] | None = None
    by: str = ""


class VerbAnswer(Frozen):
    """What the verb has led to, in one line."""

    message: str
