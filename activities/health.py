"""Activity that asks a rebuilt VM whether it is well."""

from __future__ import annotations

import re
import socket
import subprocess

from temporalio import activity

from activities.patience import watched
from whimbrel.contracts.activity_io import HealthInput, HealthResult
from whimbrel.errors import GuestUnbootable, NotReady
from whimbrel.model.plan import AgentCheck, CommandCheck, ConsoleCheck, TcpCheck
from whimbrel.model.vm import Power
from whimbrel.ports.cloud import Cloud, CloudRegistry

COMMAND_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
CONSOLE_BYTES = 65536


def _console(cloud: Cloud, wanted: HealthInput, check: ConsoleCheck) -> str:
    tail = cloud.guest.console_tail(wanted.ref, CONSOLE_BYTES)
    if tail is None:
        raise GuestUnbootable(
            "the console cannot be read: this VM has no logged console that the mover can reach",
            action="give the VM a logged serial console, or use another health check in the plan",
        )
    if wanted.console_mark and wanted.console_mark in tail:
        # The log may go on from an earlier boot, even one at the source.
        tail = tail.rpartition(wanted.console_mark)[2]
    if re.search(check.pattern, tail) is None:
        raise NotReady(f"the console does not show /{check.pattern}/ yet", last=tail[-200:])
    return f"console shows /{check.pattern}/"


def _agent(cloud: Cloud, ref: str) -> str:
    if not cloud.guest.facts(ref).agent:
        raise NotReady("the guest agent does not answer yet")
    return "guest agent answers"


def _tcp(check: TcpCheck) -> str:
    try:
        with socket.create_connection((check.host, check.port), timeout=CONNECT_TIMEOUT_S):
            return f"TCP {check.host}:{check.port} accepts"
    except OSError as error:
        raise NotReady(f"TCP {check.host}:{check.port} does not accept yet: {error}") from error


def _command(check: CommandCheck) -> str:
    name = check.argv[0]
    try:
        # The plan's own command, as an argument list: there is no shell to be tricked.
        run = subprocess.run(
            list(check.argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise GuestUnbootable(
            f"the plan's check {name} does not exist on the worker", action="correct health.checks in the plan"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NotReady(f"the plan's check {name} did not end within {COMMAND_TIMEOUT_S:.0f} s") from error
    if run.returncode != 0:
        last = run.stderr.decode(errors="replace").strip()[-200:]
        raise NotReady(f"the plan's check {name} says no (exit code {run.returncode})", last=last)
    return f"{name} passed"


class HealthActivities:
    """Checks of rebuilt VMs."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="health.check", no_thread_cancel_exception=True)
    def check(self, wanted: HealthInput) -> HealthResult:
        """Pass all checks, or raise NotReady (tried again by Temporal until the plan's timeout)."""
        cloud = self._clouds.get(wanted.cloud)
        power = cloud.compute.power(wanted.ref)
        if power is not Power.RUNNING:
            raise NotReady(f"the VM is {power}, not running", vm=wanted.ref)
        return watched(lambda: self._passed(cloud, wanted))

    @staticmethod
    def _passed(cloud: Cloud, wanted: HealthInput) -> HealthResult:
        passed = ["VM runs"]
        for check in wanted.policy.checks:
            if isinstance(check, ConsoleCheck):
                passed.append(_console(cloud, wanted, check))
            elif isinstance(check, AgentCheck):
                passed.append(_agent(cloud, wanted.ref))
            elif isinstance(check, TcpCheck):
                passed.append(_tcp(check))
            else:
                passed.append(_command(check))
        return HealthResult(passed=tuple(passed))
