"""The activity interceptor: our errors become Temporal failures, and log lines get their context."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, FailureError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from whimbrel.contracts.failure import FailureDetails
from whimbrel.errors import NotReady, Throttled, WhimbrelError
from whimbrel.runtime.redaction import redact


def _category(error: WhimbrelError) -> ApplicationErrorCategory:
    benign = isinstance(error, NotReady)
    return ApplicationErrorCategory.BENIGN if benign else ApplicationErrorCategory.UNSPECIFIED


def to_failure(error: WhimbrelError) -> ApplicationError:
    """The Temporal failure that stands for ``error``: its code as type, retryability, pause, and redacted details."""
    pause_s = error.retry_after_s if isinstance(error, Throttled | NotReady) else None
    details = FailureDetails(
        code=error.code,
        category=error.category,
        audience=error.audience,
        action=redact(error.action),
        evidence={key: redact(value) for key, value in error.evidence.items()},
    )
    return ApplicationError(
        redact(str(error)),
        details.model_dump(),
        type=error.code,
        non_retryable=not error.retryable,
        next_retry_delay=timedelta(seconds=pause_s) if pause_s is not None else None,
        category=ApplicationErrorCategory.BENIGN
        if isinstance(error, NotReady)
        else ApplicationErrorCategory.UNSPECIFIED,
    )


class _Inbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's own name
        info = activity.info()
        log = structlog.get_logger("whimbrel.activity")
        with structlog.contextvars.bound_contextvars(
            workflow=info.workflow_id, activity=info.activity_type, attempt=info.attempt
        ):
            try:
                return await super().execute_activity(input)
            except WhimbrelError as error:
                if not isinstance(error, NotReady):
                    log.warning("activity.failed", code=error.code, error=redact(str(error)))
                # Causes stay in the log: what a vendor wrote in one may hold a secret and would reach the history.
                raise to_failure(error) from None
            except FailureError:
                raise
            except Exception as error:
                log.exception("activity.crashed")
                # An error outside the taxonomy is a defect of ours: it is retried, and seen.
                raise ApplicationError(
                    redact(f"{type(error).__name__}: {error}")[:2000],
                    FailureDetails(code="Defect", action="report this with the worker's log").model_dump(),
                    type="Defect",
                ) from None


class ErrorTranslation(Interceptor):
    """Give this to every worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Wrap the chain."""
        return _Inbound(super().intercept_activity(next))
