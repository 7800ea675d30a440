"""Which verb fits when: the whole table, pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whimbrel.contracts import verbs
from whimbrel.model.progress import TERMINAL, Phase
from workflows.operator import Situation, allowed, refusal

EARLY = {verbs.SET_BANDWIDTH, verbs.ROLLBACK, verbs.ABORT}
LATE = {verbs.SET_BANDWIDTH, verbs.ROLLBACK}
FITTING: dict[Phase, set[str]] = {
    Phase.PRECHECK: EARLY,
    Phase.PREPARE: EARLY,
    Phase.BASELINE: EARLY | {verbs.PAUSE, verbs.CUTOVER},
    Phase.ROUNDS: EARLY | {verbs.PAUSE, verbs.CUTOVER, verbs.SYNC_NOW},
    Phase.CUTOVER: LATE,
    Phase.HYDRATE: LATE | {verbs.PAUSE},
    Phase.REBUILD: LATE,
    Phase.VERIFY: LATE,
    Phase.CONFIRM: LATE | {verbs.CONFIRM},
    Phase.COMMIT: set(),
    Phase.ATTENTION: EARLY | {verbs.RESUME, verbs.CUTOVER},
    Phase.ROLLING_BACK: set(),
    Phase.COMPLETED: set(),
    Phase.ROLLED_BACK: set(),
    Phase.REFUSED: set(),
}
STOPPED = frozenset({Phase.CUTOVER, Phase.HYDRATE, Phase.REBUILD, Phase.VERIFY, Phase.CONFIRM, Phase.COMMIT})


def situation(phase: Phase) -> Situation:
    return Situation(
        phase=phase,
        held=phase is Phase.ATTENTION,
        source_stopped=phase in STOPPED,
        paused=False,
        rollback_asked=phase is Phase.ROLLING_BACK,
        confirmed=phase is Phase.COMMIT,
    )


def test_the_table_knows_every_phase() -> None:
    assert set(FITTING) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_the_verbs_of_a_phase(phase: Phase) -> None:
    assert set(allowed(situation(phase))) == FITTING[phase]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("verb", verbs.VERBS)
def test_a_refusal_says_why(phase: Phase, verb: str) -> None:
    why = refusal(verb, situation(phase))
    assert (why is None) is (verb in FITTING[phase])
    if why is not None:
        assert len(why) > 10
        assert why[0].islower()
        assert not why.endswith(".")


@pytest.mark.parametrize("phase", [Phase.BASELINE, Phase.ROUNDS])
def test_paused(phase: Phase) -> None:
    """Only going on, giving up and the bandwidth make sense."""
    assert set(allowed(replace(situation(phase), paused=True))) == EARLY | {verbs.RESUME}


def test_held_with_the_source_stopped() -> None:
    """No abort and no second cutover: the source must be started by a rollback."""
    now = replace(situation(Phase.ATTENTION), source_stopped=True)
    assert set(allowed(now)) == LATE | {verbs.RESUME}


def test_held_while_undoing() -> None:
    """The undo that failed can be tried again, nothing else."""
    now = replace(situation(Phase.ATTENTION), rollback_asked=True)
    assert allowed(now) == (verbs.RESUME,)


def test_held_while_committing() -> None:
    """The target was confirmed: forward is the only way."""
    now = replace(situation(Phase.ATTENTION), source_stopped=True, confirmed=True)
    assert verbs.ROLLBACK not in allowed(now)
    assert verbs.ABORT not in allowed(now)
    assert verbs.RESUME in allowed(now)


def test_after_the_window() -> None:
    assert verbs.CUTOVER not in allowed(replace(situation(Phase.ROUNDS), window_closed=True))
    assert "window" in (refusal(verbs.CUTOVER, replace(situation(Phase.ROUNDS), window_closed=True)) or "")


@pytest.mark.parametrize("phase", [Phase.BASELINE, Phase.ATTENTION])
def test_a_cold_migration_cuts_over_by_itself(phase: Phase) -> None:
    assert verbs.CUTOVER not in allowed(replace(situation(phase), cold=True))


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_the_end_is_the_end(phase: Phase) -> None:
    assert allowed(replace(situation(phase), held=True, paused=True)) == ()
