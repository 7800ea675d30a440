"""A migration that runs, as its operator sees it: status, verbs, report. Everything waits by polling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError

from tests.e2e.installation import Installation
from whimbrel.contracts import verbs
from whimbrel.contracts.names import STATUS_QUERY
from whimbrel.contracts.verbs import SetBandwidth, Verb, VerbAnswer
from whimbrel.model.plan import VmPlan
from whimbrel.model.progress import TERMINAL, MigrationReport, MigrationStatus, Phase

POLL_S = 0.1
PATIENCE_S = 180.0
"""Generous: two cores may carry several labs."""
RPC_S = 30.0
PENDING_ACTIVITY_STATE_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED


class Running:
    """One migration; a server or worker that is down for a while only makes the polls wait."""

    def __init__(self, installation: Installation, plan: VmPlan, handle: WorkflowHandle[Any, MigrationReport]) -> None:
        self.installation = installation
        self.plan = plan
        self.handle = handle
        self._migration: str | None = None

    @property
    def migration(self) -> str:
        """The id that every object of this migration bears."""
        if self._migration is None:
            self._migration = self.until(lambda now: True, "an answer").migration
        return self._migration

    # -- looking ------------------------------------------------------------------------------------------------

    def status(self) -> MigrationStatus:
        """The status query. Raises RPCError while server or workers are down."""
        found: MigrationStatus = self.installation.run(
            self.handle.query(STATUS_QUERY, result_type=MigrationStatus, rpc_timeout=timedelta(seconds=RPC_S))
        )
        return found

    def until(
        self,
        fits: Callable[[MigrationStatus], bool],
        what: str,
        *,
        timeout_s: float = PATIENCE_S,
        held: bool = False,
    ) -> MigrationStatus:
        """Wait for a status; ``held`` allows that the migration asks its operator on the way."""
        deadline = time.monotonic() + timeout_s
        seen: MigrationStatus | None = None
        lost: RPCError | None = None
        while time.monotonic() < deadline:
            try:
                seen = self.status()
            except RPCError as error:
                lost = error
                time.sleep(POLL_S)
                continue
            if fits(seen):
                return seen
            if seen.phase in TERMINAL:
                report = self.report()
                raise AssertionError(f"waited for {what}; it ended {report.outcome}: {report.reason}; {told(seen)}")
            if seen.phase is Phase.ATTENTION and not held:
                raise AssertionError(f"waited for {what}; it is held: {told(seen)}")
            time.sleep(POLL_S)
        raise AssertionError(f"waited {timeout_s:.0f} s for {what}: {told(seen) if seen else lost}")

    def phase(self, phase: Phase, *, timeout_s: float = PATIENCE_S, held: bool = False) -> MigrationStatus:
        """Wait for a phase."""
        return self.until(
            lambda now: now.phase is phase, f"phase {phase}", timeout_s=timeout_s, held=held or phase is Phase.ATTENTION
        )

    def step(self, name: str, *, timeout_s: float = PATIENCE_S) -> MigrationStatus:
        """Wait until the step of this name runs (or is over already)."""
        return self.until(
            lambda now: any(step.name == name for step in now.steps), f"step {name!r}", timeout_s=timeout_s
        )

    def running_step(self, start: str, *, timeout_s: float = PATIENCE_S) -> MigrationStatus:
        """Wait until a step whose name begins with ``start`` runs right now."""
        return self.until(
            lambda now: bool(now.steps) and now.steps[-1].name.startswith(start) and now.steps[-1].outcome == "running",
            f"running step {start!r}",
            timeout_s=timeout_s,
        )

    def rounds(self, count: int, *, timeout_s: float = PATIENCE_S) -> MigrationStatus:
        """Wait until so many rounds (the baseline is one) are done."""
        return self.until(lambda now: now.rounds_done >= count, f"{count} rounds", timeout_s=timeout_s)

    def activity(self, kind: str, *, timeout_s: float = PATIENCE_S) -> str:
        """Wait until an activity of this type is with a worker; the worker's identity (``pid@host``)."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for pending in self.pending():
                if pending.activity_type.name == kind and pending.state == PENDING_ACTIVITY_STATE_STARTED:
                    return str(pending.last_worker_identity)
            time.sleep(POLL_S / 2)
        raise AssertionError(f"no {kind} was under way within {timeout_s:.0f} s: {told(self.status())}")

    def pending(self) -> list[PendingActivityInfo]:
        """Activities that are scheduled or running, as the server knows them."""
        description = self.installation.run(self.handle.describe())
        return list(description.raw_description.pending_activities)

    def report(self, *, timeout_s: float = PATIENCE_S) -> MigrationReport:
        """The result, however it ended."""
        deadline = time.monotonic() + timeout_s
        last: BaseException | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self.installation.run(asyncio.wait_for(self.handle.result(), left), timeout_s=left + 10)
            except RPCError as error:
                last = error
                time.sleep(POLL_S)
            except (TimeoutError, FutureTimeout) as error:
                last = error
                break
        raise AssertionError(f"no result within {timeout_s:.0f} s ({last}); {told(self.status())}")

    # -- asking -------------------------------------------------------------------------------------------------

    def say(self, verb: str, *, reason: str = "", bytes_per_s: float | None = None, drop_writes: bool = False) -> str:
        """Say a verb; the answer."""
        ask: Verb | SetBandwidth = (
            SetBandwidth(bytes_per_s=bytes_per_s)
            if verb == verbs.SET_BANDWIDTH
            else Verb(by="e2e", reason=reason, drop_writes=drop_writes)
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer: VerbAnswer = self.installation.run(
                    self.handle.execute_update(verb, ask, result_type=VerbAnswer, rpc_timeout=timedelta(seconds=RPC_S))
                )
                return answer.message
            except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def refused(self, verb: str) -> str:
        """Say a verb that must be refused; why it was."""
        with pytest.raises(WorkflowUpdateFailedError) as refusal:
            self.say(verb)
        return str(refusal.value.cause)


def told(status: MigrationStatus) -> str:
    """A status in one line, for the message of a failed test."""
    steps = " | ".join(f"{step.name}: {step.outcome} {step.detail}".strip() for step in status.steps[-8:])
    trouble = f"; trouble {status.trouble.code}: {status.trouble.message}" if status.trouble else ""
    return f"phase {status.phase}, rounds {status.rounds_done}{trouble}; steps: {steps}"
