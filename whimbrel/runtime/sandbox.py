"""The sandbox that workflows run in: the same for workers, tests and the replayer."""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

# Passed through: pure values and contracts, and the activity classes whose methods are named in calls.
# Workflow code itself stays inside, so that clocks, random numbers and threads are refused there.
PASSED_THROUGH = ("whimbrel", "activities", "drivers", "structlog", "xxhash", "yaml", "rich")


def runner() -> SandboxedWorkflowRunner:
    """A runner with our modules passed through by name."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))
