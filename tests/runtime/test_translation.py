"""Our errors as Temporal failures: type, retryability, pause, details; no secret, no vendor's text."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from whimbrel import errors
from whimbrel.contracts import failure
from whimbrel.errors import NotReady, Throttled, Unavailable, WhimbrelError, error_class
from whimbrel.runtime.redaction import redact
from whimbrel.runtime.translation import ErrorTranslation, to_failure

LEAVES = [
    kind
    for name in dir(errors)
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, WhimbrelError) and kind is not WhimbrelError
]
SECRET = "hunter2hunter2"


def _make(kind: type[WhimbrelError]) -> WhimbrelError:
    return Throttled("slow down", retry_after_s=3.5) if issubclass(kind, Throttled) else kind("it failed", vm="a")


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_of_the_taxonomy(kind: type[WhimbrelError]) -> None:
    error = _make(kind)
    made = to_failure(error)
    assert made.type == kind.__name__
    assert made.non_retryable is not error.retryable
    assert made.next_retry_delay == (timedelta(seconds=3.5) if kind is Throttled else None)
    assert made.category is (
        ApplicationErrorCategory.BENIGN if kind is NotReady else ApplicationErrorCategory.UNSPECIFIED
    )
    assert made.details[0]["action"] == error.action
    assert made.details[0]["category"] == error.category
    assert error_class(str(made.type)) is kind
    read = failure.read(made)
    assert (read.code, read.action) == (kind.__name__, error.action)


def test_a_cloud_that_says_when_to_look_again_is_asked_then() -> None:
    assert to_failure(NotReady("it starts", retry_after_s=2.0)).next_retry_delay == timedelta(seconds=2)


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://admin:{SECRET}@cloud.example/v3",
        f"auth failed: password={SECRET}, user=admin",
        f'{{"token": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"OS_PASSWORD={SECRET}",
        f"api_key: '{SECRET}'",
    ],
)
def test_secrets_are_cut_out(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)
    made = to_failure(Unavailable(text, action=text, answer=text))
    assert SECRET not in str(made) + str(made.details)


@pytest.mark.parametrize("text", ["copy of vda stopped", "whimbrel-0a1b2c3d4e-0001", "https://cloud.example:5000/v3"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


class _Failing(ActivityInboundInterceptor):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def execute_activity(self, input: ExecuteActivityInput) -> object:  # noqa: A002 - the SDK's own name
        try:
            raise ValueError(f"the vendor said password={SECRET}")
        except ValueError as cause:
            raise self._error from cause


@activity.defn
async def _nothing() -> None:
    """Stands for any activity."""


async def _through(error: BaseException) -> ApplicationError:
    chain = ErrorTranslation().intercept_activity(_Failing(error))
    asked = ExecuteActivityInput(fn=_nothing, args=[], executor=None, headers={})

    async def act() -> None:
        await chain.execute_activity(asked)

    with pytest.raises(ApplicationError) as caught:
        await ActivityEnvironment().run(act)
    return caught.value


def test_the_cause_stays_behind() -> None:
    made = asyncio.run(_through(Unavailable("the cloud went away", cause=ValueError(SECRET))))
    assert made.type == "Unavailable"
    assert made.__cause__ is None
    assert made.__suppress_context__
    assert not made.non_retryable


def test_a_defect_is_retried_and_named() -> None:
    made = asyncio.run(_through(KeyError(f"password={SECRET}")))
    assert made.type == "Defect"
    assert not made.non_retryable
    assert SECRET not in str(made)
    assert made.__suppress_context__


def test_a_temporal_failure_passes() -> None:
    made = asyncio.run(_through(ApplicationError("as it is", type="Own", non_retryable=True)))
    assert (made.type, made.message) == ("Own", "as it is")
