"""Every error of the SDK and of ours as one line, an action and an exit code."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault, explain
from whimbrel.config.problem import InvalidFile, Problem
from whimbrel.errors import AuthFailed, Conflict, InvalidPlan, NotFound, Unavailable


def rpc(status: RPCStatusCode, message: str = "said so") -> RPCError:
    return RPCError(message, status, b"")


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (InvalidPlan("x"), ExitCode.INVALID, "InvalidPlan"),
        (InvalidFile([Problem("f", 1, (), "x")]), ExitCode.INVALID, "InvalidFile"),
        (NotFound("x"), ExitCode.NOT_FOUND, "NotFound"),
        (Unavailable("x"), ExitCode.UNREACHABLE, "Unavailable"),
        (AuthFailed("x"), ExitCode.FAILED, "AuthFailed"),
        (Conflict("x"), ExitCode.FAILED, "Conflict"),
        (rpc(RPCStatusCode.NOT_FOUND), ExitCode.NOT_FOUND, "NotFound"),
        (rpc(RPCStatusCode.NOT_FOUND, "workflow execution already completed"), ExitCode.FAILED, "Ended"),
        (rpc(RPCStatusCode.UNAVAILABLE), ExitCode.UNREACHABLE, "Unavailable"),
        (rpc(RPCStatusCode.DEADLINE_EXCEEDED), ExitCode.FAILED, "NoAnswer"),
        (rpc(RPCStatusCode.PERMISSION_DENIED), ExitCode.FAILED, "AuthFailed"),
        (rpc(RPCStatusCode.INVALID_ARGUMENT, "no search attribute WhimbrelVm"), ExitCode.FAILED, "NoSearchAttributes"),
        (rpc(RPCStatusCode.RESOURCE_EXHAUSTED), ExitCode.FAILED, "RESOURCE_EXHAUSTED"),
        (TimeoutError(), ExitCode.FAILED, "NoAnswer"),
        (WorkflowUpdateFailedError(ApplicationError("not now")), ExitCode.FAILED, "Refused"),
        (WorkflowFailureError(cause=ApplicationError("no", type="QuotaExceeded")), ExitCode.FAILED, "QuotaExceeded"),
        (Fault(ExitCode.BLOCKED, "X", "y"), ExitCode.BLOCKED, "X"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_error(error: BaseException, exit_code: ExitCode, code: str) -> None:
    fault = explain(error)
    assert fault is not None
    assert (fault.exit_code, fault.code) == (exit_code, code)
    assert fault.message
    assert "\n" not in fault.message
    assert fault.action or code == "X"


def test_a_defect_of_ours_is_not_explained_away() -> None:
    assert explain(KeyError("x")) is None


def test_secrets_do_not_reach_the_screen() -> None:
    fault = Fault(ExitCode.FAILED, "X", "cannot open qemu+tcp://u:hunter2@h/system", "check password=hunter2")
    assert "hunter2" not in f"{fault.message} {fault.action} {fault}"
