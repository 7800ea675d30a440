"""Rules of the house that a tool can hold."""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import RestrictedWorkflowAccessError

from tests.architecture.forbidden_workflow import ReadsTheClock
from whimbrel.runtime.devserver import temporal_binary
from whimbrel.runtime.sandbox import runner

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for top in ("whimbrel", "workflows", "activities", "drivers", "labs")
    for path in sorted((REPOSITORY / top).rglob("*.py"))
] + [REPOSITORY / "worker.py", REPOSITORY / "starter.py"]
TOP_LEVEL = ("whimbrel", "workflows", "activities", "drivers", "worker", "starter")
MAX_LINES = 500


def _names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(REPOSITORY)) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=_names(SOURCES))
def test_a_file_is_one_idea(path: Path) -> None:
    """Short enough to read at once, and it says what it is about."""
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "the module has no docstring"
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "manager"}


def test_every_package_says_what_it_is() -> None:
    folders = {path.parent for path in SOURCES if path.parent != REPOSITORY}
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert missing == []


def test_top_level_names_are_nobody_elses() -> None:
    """A flat application: another distribution with a module of the same name would shadow ours."""
    owners = importlib.metadata.packages_distributions()
    taken = {name: owners.get(name, []) for name in TOP_LEVEL if set(owners.get(name, [])) - {"whimbrel"}}
    assert taken == {}


def test_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "import datetime\nnow = datetime.datetime.now(datetime.UTC)",
        "import time\nnow = time.time()",
        "import uuid\nname = uuid.uuid4()",
        "import random\nchance = random.random()",
        "import asyncio\nwaiting = asyncio.wait",
    ],
)
def test_workflows_may_not_even_name_what_is_not_deterministic(line: str) -> None:
    """The linter's ban holds in ``workflows/`` and only there."""
    verdicts = {}
    for place in ("workflows/probe.py", "activities/probe.py"):
        done = subprocess.run(
            [Path(sys.executable).parent / "ruff", "check", "--select", "TID251", "--stdin-filename", place, "-"],
            cwd=REPOSITORY, input=line + "\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        verdicts[place] = done.returncode
    assert verdicts == {"workflows/probe.py": 1, "activities/probe.py": 0}


def test_the_sandbox_refuses_the_clock() -> None:
    """Our runner, a real server: reading the wall clock in a workflow does not pass."""

    async def story() -> str:
        async with await WorkflowEnvironment.start_local(
            dev_server_existing_path=temporal_binary(), dev_server_log_level="error"
        ) as server:
            return await _try(server.client)

    assert "datetime.datetime.now" in asyncio.run(story())


async def _try(client: Client) -> str:
    queue = f"forbidden-{uuid.uuid4()}"
    served = Worker(
        client,
        task_queue=queue,
        workflows=[ReadsTheClock],
        workflow_runner=runner(),
        workflow_failure_exception_types=[RestrictedWorkflowAccessError],
    )
    async with served:
        with pytest.raises(WorkflowFailureError) as refusal:
            await client.execute_workflow(
                ReadsTheClock.run, id=queue, task_queue=queue, retry_policy=RetryPolicy(maximum_attempts=1)
            )
    cause = refusal.value.cause
    assert isinstance(cause, ApplicationError)
    return cause.message
