"""Everything that can go wrong, as one line, what to do about it, and an exit code."""

from __future__ import annotations

from temporalio.client import WorkflowFailureError, WorkflowQueryFailedError, WorkflowUpdateFailedError
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError as UpdateLost
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.contracts import failure
from whimbrel.errors import InvalidPlan, NotFound, Unavailable, WhimbrelError
from whimbrel.runtime.redaction import redact

START_WORKER = "start one: whimbrel-worker (python worker.py); whimbrel doctor tells more"


class Fault(Exception):
    """The end of a command: ``message`` is one line (more for a file with several mistakes), ``action`` what to do."""

    def __init__(self, exit_code: ExitCode, code: str, message: str, action: str = "") -> None:
        self.exit_code = exit_code
        self.code = code
        self.message = redact(message)
        self.action = redact(action)
        super().__init__(self.message)


def no_worker(queue: str) -> Fault:
    """Nobody polls a task queue."""
    return Fault(ExitCode.FAILED, "NoWorker", f"no worker polls the task queue {queue!r}", START_WORKER)


def no_answer() -> Fault:
    """A worker should have answered and did not."""
    return Fault(
        ExitCode.FAILED, "NoAnswer", "no worker answered in time; the migration itself is unharmed", START_WORKER
    )


def explain(error: BaseException) -> Fault | None:
    """``error`` as a fault, or None for a defect of ours."""
    fault: Fault | None = None
    match error:
        case Fault():
            fault = error
        case WhimbrelError():
            fault = Fault(_exit_code(error), error.code, str(error), error.action)
        case WorkflowUpdateFailedError():
            told = failure.read(error.cause or error)
            fault = Fault(ExitCode.FAILED, "Refused", told.message, "whimbrel status shows what is possible now")
        case WorkflowFailureError():
            told = failure.read(error.cause)
            fault = Fault(ExitCode.FAILED, told.code, told.message, told.action)
        case UpdateLost() | TimeoutError():
            fault = no_answer()
        case WorkflowQueryFailedError():
            fault = Fault(
                ExitCode.FAILED, "QueryFailed", str(error), "see that worker and command line have one version"
            )
        case RPCError():
            fault = _from_rpc(error)
    return fault


def _exit_code(error: WhimbrelError) -> ExitCode:
    if isinstance(error, InvalidPlan):
        return ExitCode.INVALID
    if isinstance(error, NotFound):
        return ExitCode.NOT_FOUND
    return ExitCode.UNREACHABLE if isinstance(error, Unavailable) else ExitCode.FAILED


def _from_rpc(error: RPCError) -> Fault:
    said = error.message.splitlines()[0] if error.message else error.status.name
    exit_code, code, message = ExitCode.FAILED, error.status.name, f"Temporal: {said}"
    action = "whimbrel doctor looks for what is missing"
    match error.status:
        case RPCStatusCode.NOT_FOUND if "already completed" in said:
            code, message, action = "Ended", "the migration has ended already", "whimbrel report shows its outcome"
        case RPCStatusCode.NOT_FOUND:
            exit_code, code, message = ExitCode.NOT_FOUND, "NotFound", f"not found: {said}"
            action = "whimbrel status lists what there is"
        case RPCStatusCode.UNAVAILABLE:
            exit_code, code, message = ExitCode.UNREACHABLE, "Unavailable", f"Temporal does not answer: {said}"
            action = "see that the server at TEMPORAL_ADDRESS runs; migrations go on when it does"
        case RPCStatusCode.DEADLINE_EXCEEDED | RPCStatusCode.CANCELLED | RPCStatusCode.FAILED_PRECONDITION:
            return no_answer()
        case RPCStatusCode.PERMISSION_DENIED | RPCStatusCode.UNAUTHENTICATED:
            code, message = "AuthFailed", f"Temporal refuses us: {said}"
            action = "check TEMPORAL_API_KEY or the TLS certificate, and TEMPORAL_NAMESPACE"
        case RPCStatusCode.INVALID_ARGUMENT if "search attribute" in said.lower():
            code, message = "NoSearchAttributes", f"the server lacks our search attributes: {said}"
            action = "start a worker once (it registers them); whimbrel doctor tells more"
    return Fault(exit_code, code, message, action)
