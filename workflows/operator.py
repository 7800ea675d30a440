"""What the operator may ask for, when, and what was asked."""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.contracts import verbs
from whimbrel.model.progress import TERMINAL, Phase

COPYING = frozenset({Phase.BASELINE, Phase.ROUNDS})
BEFORE_CUTOVER = frozenset({Phase.PRECHECK, Phase.PREPARE, Phase.BASELINE, Phase.ROUNDS})
UNSTOPPABLE = frozenset({Phase.COMMIT, Phase.ROLLING_BACK, *TERMINAL})


@dataclass
class Wishes:
    """Standing requests; each is cleared by the step that grants it."""

    paused: bool = False
    cutover: bool = False
    sync_now: bool = False
    confirm: bool = False
    retry: bool = False
    rollback: str | None = None
    """Why, once a rollback or an abort was asked for."""
    drop_writes: bool = False
    """The target's writes are given up: its cloud may be gone for good."""
    bandwidth_bytes_per_s: float | None = None
    copy_generation: int = 0
    """Raised whenever running copies must stop and start again with other settings."""


@dataclass(frozen=True)
class Situation:
    """What decides whether a verb fits now."""

    phase: Phase
    held: bool
    """The migration waits for the operator after a failure."""
    source_stopped: bool
    paused: bool
    rollback_asked: bool
    window_closed: bool = False
    cold: bool = False
    """The mode has no rounds: it stops the source as soon as it may."""
    confirmed: bool = False
    """The commit has begun, even if a step of it waits for the operator."""


def refusal(verb: str, now: Situation) -> str | None:  # noqa: PLR0911 - one line per verb reads best
    """Why ``verb`` does not fit now, or None when it does."""
    if now.phase in TERMINAL:
        return f"this migration has ended ({now.phase})"
    if now.rollback_asked and verb != verbs.RESUME:
        return "it is being rolled back already"
    if verb in {verbs.ROLLBACK, verbs.ABORT}:
        if now.confirmed:
            return "too late: the target was confirmed"
        if now.phase in UNSTOPPABLE:
            return f"too late: the phase is {now.phase}"
    if verb == verbs.ABORT and (now.source_stopped or now.phase not in BEFORE_CUTOVER | {Phase.ATTENTION}):
        return "the source has been stopped: use rollback, which starts it again"
    if verb == verbs.CONFIRM and now.phase is not Phase.CONFIRM:
        return f"there is nothing to confirm in phase {now.phase}"
    if verb == verbs.CUTOVER:
        return _cutover_refusal(now)
    if verb == verbs.PAUSE:
        return _pause_refusal(now)
    if verb == verbs.RESUME and not (now.paused or now.held):
        return "it is neither paused nor waiting for you"
    if verb == verbs.SYNC_NOW and (now.phase is not Phase.ROUNDS or now.paused or now.held):
        return f"rounds are not running (phase {now.phase}{', paused' if now.paused else ''})"
    if verb == verbs.SET_BANDWIDTH and now.phase in UNSTOPPABLE:
        return f"nothing is copied in phase {now.phase}"
    return None


def drop_refusal(*, keep_writes: bool, bringing_back: bool, source_half_written: bool) -> str | None:
    """Why the target's writes cannot be given up in a rollback that is under way, or None when they can."""
    if not keep_writes or not bringing_back:
        return "no writes of the target are being brought back"
    if source_half_written:
        return "the source's disks hold part of the target's writes already: only the rest makes them whole"
    return None


def _cutover_refusal(now: Situation) -> str | None:
    if now.cold:
        return "this mode stops the source by itself"
    if now.phase not in COPYING and not (now.held and not now.source_stopped):
        return f"there is nothing to cut over in phase {now.phase}"
    if now.paused:
        return "it is paused: resume first"
    if now.window_closed:
        return "the plan's window has closed"
    return None


def _pause_refusal(now: Situation) -> str | None:
    if now.paused:
        return "it is paused already"
    if now.phase not in COPYING | {Phase.HYDRATE}:
        return f"only copying before the cutover, and hydration, can be paused (phase {now.phase})"
    return None


def allowed(now: Situation) -> tuple[str, ...]:
    """The verbs that would be accepted."""
    return tuple(verb for verb in verbs.VERBS if refusal(verb, now) is None)
