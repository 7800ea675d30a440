"""How an error of the taxonomy looks in a Temporal failure, and how it is read from one."""

from __future__ import annotations

from pydantic import Field
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, FailureError
from temporalio.exceptions import TimeoutError as TemporalTimeout

from whimbrel.model.endpoint import Frozen


class FailureDetails(Frozen):
    """Details of an ``ApplicationError`` whose type is the error's code."""

    code: str
    category: str = "internal"
    audience: str = "developer"
    action: str = ""
    evidence: dict[str, str] = Field(default_factory=dict)


class Failure(Frozen):
    """A failed step as the operator reads it."""

    code: str
    message: str
    action: str


def leaf(error: BaseException) -> BaseException:
    """The innermost cause that Temporal kept: activity and child errors only wrap it."""
    while isinstance(error, FailureError) and error.cause is not None:
        error = error.cause
    return error


def read(error: BaseException) -> Failure:
    """What went wrong, from whatever the SDK raised."""
    cause = leaf(error)
    if isinstance(cause, ApplicationError):
        action = "look at the failed activity in the Temporal UI, then resume or roll back"
        for detail in cause.details:
            if isinstance(detail, dict) and "action" in detail:
                action = str(detail["action"])
        return Failure(code=cause.type or "Error", message=cause.message, action=action)
    if isinstance(cause, TemporalTimeout):
        step = f" ({error.activity_type})" if isinstance(error, ActivityError) else ""
        return Failure(
            code="Timeout",
            message=f"no answer in time{step}: {cause.message}",
            action="see that a worker for this task queue runs and the cloud answers, then resume",
        )
    return Failure(code=type(cause).__name__, message=str(cause) or "failed", action="resume or roll back")


def is_cancel(error: BaseException) -> bool:
    """Whether the error is only the echo of a cancellation."""
    return isinstance(leaf(error), CancelledError)


def code(error: BaseException) -> str:
    """The taxonomy's code, for branches such as ``BaseLost``."""
    return read(error).code
