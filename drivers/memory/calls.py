"""Every call on a port of the in-memory cloud passes here: logged in order, delayed, or failed on request."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from whimbrel.errors import WhimbrelError

P = ParamSpec("P")
R = TypeVar("R")
When = Literal["before", "after"]
ANY = "*"


class Call(NamedTuple):
    """One call as it came in; ``args`` by name, defaults included."""

    port: str
    method: str
    args: dict[str, Any]


@dataclass
class Fault:
    """What happens to calls of ``port``.``method`` (``"*"`` is any): a pause, then an error.

    ``times`` is None for until cleared. ``when`` "after" does the work first and loses the answer.
    """

    port: str
    method: str
    error: Callable[[], WhimbrelError] | None = None
    times: int | None = 1
    delay_s: float = 0.0
    when: When = "before"

    def fits(self, port: str, method: str, when: When) -> bool:
        """Whether this fault is for such a call and not used up."""
        return (
            self.when == when
            and self.port in {ANY, port}
            and self.method in {ANY, method}
            and (self.times is None or self.times > 0)
        )


@dataclass
class CallLog:
    """The calls so far and the faults waiting for calls to come."""

    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def enter(self, call: Call) -> None:
        """Log a call and let the faults that wait for it strike before its work."""
        with self._lock:
            self.calls.append(call)
        self.strike(call.port, call.method, "before")

    def clear(self) -> None:
        """Forget calls and faults."""
        with self._lock:
            self.calls.clear()
            self.faults.clear()

    def strike(self, port: str, method: str, when: When) -> None:
        """Pause and raise as the first fitting fault says; nothing when none fits."""
        with self._lock:
            fault = next((fault for fault in self.faults if fault.fits(port, method, when)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is None:
            return
        time.sleep(fault.delay_s)
        if fault.error is not None:
            raise fault.error()


class Logged(Protocol):
    """A port that has a call log."""

    @property
    def log(self) -> CallLog:
        """Where its calls are written down."""
        ...


S = TypeVar("S", bound=Logged)


def port_call(port: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Decorate a port's method: log the call, let faults strike before and after it."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def called(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            named = {name: value for name, value in bound.arguments.items() if name != "self"}
            self.log.enter(Call(port, method.__name__, named))
            result = method(self, *args, **kwargs)
            self.log.strike(port, method.__name__, "after")
            return result

        return called

    return decorate
