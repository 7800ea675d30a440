"""The error taxonomy: what went wrong, in terms that decide what happens next.

::

    WhimbrelError
    ├── retryable: Temporal tries again by itself
    │   ├── Throttled          the cloud asks us to slow down (``retry_after``)
    │   ├── Unavailable        connection refused, daemon down, timeout
    │   └── NotReady           benign: what we wait for has not happened yet
    └── not retryable: a person or another branch of the workflow must act
        ├── AuthFailed         credentials refused
        ├── PermissionDenied   credentials accepted, the act refused
        ├── NotFound           the named object does not exist
        ├── Conflict           somebody else holds it, or it exists and is not ours
        ├── InvalidPlan        the operator's input is wrong
        ├── QuotaExceeded      no room, no quota
        ├── Unsupported        this cloud cannot do it
        ├── PreconditionFailed a precheck or a guard said no
        ├── BaseLost           change tracking cannot answer; a full compare is needed
        ├── DataMismatch       source and target differ where they must not
        ├── GuestUnbootable    the rebuilt VM did not come up
        └── WindowClosed       the operator's window ended

Drivers translate vendor exceptions to these in one table each. ``message`` is one line: what failed and why;
``action`` says what the operator can do; ``evidence`` holds short facts (ids, codes). Neither may hold a secret.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Audience = Literal["operator", "platform", "developer"]
MAX_MESSAGE_CHARS = 2000
MAX_EVIDENCE_CHARS = 500


class WhimbrelError(Exception):
    """Base of every error that may cross a port; see the module's tree."""

    category: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    audience: ClassVar[Audience] = "developer"
    default_action: ClassVar[str] = "report this with the migration's id"

    def __init__(
        self, message: str, *, action: str | None = None, cause: BaseException | None = None, **evidence: object
    ) -> None:
        self.message = message[:MAX_MESSAGE_CHARS]
        self.action = action or self.default_action
        self.evidence = {key: str(value)[:MAX_EVIDENCE_CHARS] for key, value in evidence.items()}
        super().__init__(self.message)
        if cause is not None:
            self.__cause__ = cause

    @property
    def code(self) -> str:
        """Stable name used as the Temporal failure type and in JSON output."""
        return type(self).__name__

    def __str__(self) -> str:
        facts = ", ".join(f"{key}={value}" for key, value in self.evidence.items())
        return self.message + (f" [{facts}]" if facts else "")


class Throttled(WhimbrelError):
    """The cloud asks for a pause of ``retry_after_s`` seconds."""

    category = "throttled"
    retryable = True
    audience = "platform"
    default_action = "nothing: it is tried again after the pause the cloud asked for"

    def __init__(self, message: str, *, retry_after_s: float, **kwargs: object) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **kwargs)  # type: ignore[arg-type]


class Unavailable(WhimbrelError):
    """The other side cannot be reached or went away in the middle."""

    category = "unavailable"
    retryable = True
    audience = "platform"
    default_action = "nothing yet: it is tried again; look at the named service if it goes on"


class NotReady(WhimbrelError):
    """Benign: the awaited state has not come yet; it may be asked again in ``retry_after_s``, if that is known."""

    category = "not_ready"
    retryable = True
    audience = "platform"
    default_action = "wait"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **kwargs: object) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **kwargs)  # type: ignore[arg-type]


class AuthFailed(WhimbrelError):
    """The credentials were refused."""

    category = "auth"
    audience = "operator"
    default_action = "check the credential that whimbrel.yaml refers to for this cloud"


class PermissionDenied(WhimbrelError):
    """The credentials are good but do not allow this act."""

    category = "permission"
    audience = "operator"
    default_action = "grant the role that the documentation names for this mode"


class NotFound(WhimbrelError):
    """The named object does not exist."""

    category = "not_found"
    audience = "operator"
    default_action = "check the name in the plan against the cloud's inventory"


class Conflict(WhimbrelError):
    """The object exists and is not ours, or somebody else is using it."""

    category = "conflict"
    audience = "operator"
    default_action = "remove or rename the object that is in the way, or end the other job"


class InvalidPlan(WhimbrelError):
    """The operator's input cannot be carried out as written."""

    category = "invalid_input"
    audience = "operator"
    default_action = "correct the plan"


class QuotaExceeded(WhimbrelError):
    """No space or quota left; copied data is kept."""

    category = "quota"
    audience = "operator"
    default_action = "free space or raise the quota, then resume (or cutover again): what was copied is kept"


class Unsupported(WhimbrelError):
    """This cloud or this object cannot do what is asked."""

    category = "unsupported"
    audience = "operator"
    default_action = "choose another mode for this VM"


class PreconditionFailed(WhimbrelError):
    """A precheck or a guard refused to go on."""

    category = "precondition"
    audience = "operator"
    default_action = "read the precheck's findings and correct what they name"


class BaseLost(WhimbrelError):
    """Change tracking cannot tell what changed since the given token: a full compare of block hashes is needed."""

    category = "base_lost"
    audience = "platform"
    default_action = "nothing: the next round compares block hashes instead"


class DataMismatch(WhimbrelError):
    """Source and target differ where they must be equal."""

    category = "data_mismatch"
    audience = "operator"
    default_action = "roll back: the source is intact; then report this with the evidence"


class GuestUnbootable(WhimbrelError):
    """The rebuilt VM does not come up or fails its health checks."""

    category = "guest"
    audience = "operator"
    default_action = "look at the target's console, then confirm or roll back"


class WindowClosed(WhimbrelError):
    """The operator's window ended before the step could run."""

    category = "window"
    audience = "operator"
    default_action = "give the plan another window, or cut over by hand"


def _leaves(base: type[WhimbrelError]) -> dict[str, type[WhimbrelError]]:
    found: dict[str, type[WhimbrelError]] = {}
    for sub in base.__subclasses__():
        found[sub.__name__] = sub
        found.update(_leaves(sub))
    return found


def error_class(code: str) -> type[WhimbrelError] | None:
    """The class whose ``code`` this is, or None for a name outside the taxonomy."""
    return _leaves(WhimbrelError).get(code)
