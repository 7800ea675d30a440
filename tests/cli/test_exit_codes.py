"""Exit codes of the program itself: what scripts see, after an interpreter that really ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labs.ports import lend_port
from tests.cli.conftest import EMPTY_NAMESPACE, REPOSITORY, Desk
from whimbrel.cli.exit_code import ExitCode

pytestmark = pytest.mark.timeout(240)


def test_0_and_5_and_6_and_1_of_a_migration(desk: Desk) -> None:
    plan = desk.plan("web", "refused-1", "broken-1")
    assert desk.program("migrate", plan, "--vm", "web").code == 0
    assert desk.program("precheck", plan, "--vm", "web").code == 0
    assert desk.program("precheck", plan).code == 1  # the precheck of broken-1 cannot run at all
    assert desk.program("precheck", plan, "--vm", "refused-1").code == 5
    assert desk.program("status", f"{plan.stem}/web", "--check").code == 0
    assert desk.program("cutover", f"{plan.stem}/web").code == 0
    assert desk.program("watch", f"{plan.stem}/web", "--exit-when-waiting").code == 6
    assert desk.program("status", f"{plan.stem}/web", "--check").code == 6
    assert desk.program("cutover", f"{plan.stem}/nope").code == 3
    assert desk.program("migrate", plan, "--vm", "refused-1", "--watch").code == 5
    assert desk.program("migrate", plan, "--vm", "broken-1", "--watch").code == 1
    assert desk.program("rollback", f"{plan.stem}/web").code == 0
    assert desk.program("watch", f"{plan.stem}/web").code == 1
    assert desk.program("confirm", f"{plan.stem}/web").code == 1


def test_2_touches_nothing(desk: Desk) -> None:
    plan = desk.plan("web")
    plan.write_text(plan.read_text() + "    modee: cold\n")
    ran = desk.program("migrate", plan, TEMPORAL_ADDRESS="127.0.0.1:1")
    assert (ran.code, ran.out) == (2, "")
    assert "modee: unknown key; did you mean mode?" in ran.err
    assert desk.program("migrate").code == 2
    assert desk.program("no-such-command").code == 2
    assert desk.program("set-bandwidth", plan, "50Mb").code == 2


def test_4_when_temporal_is_not_there(desk: Desk) -> None:
    ran = desk.program("status", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert ran.code == 4
    assert ran.err.splitlines() == [
        "whimbrel status: no Temporal server answers at 127.0.0.1:1",
        "what to do: start one (whimbrel dev-server, or make demo) or set TEMPORAL_ADDRESS",
    ]
    assert desk.program("doctor", TEMPORAL_ADDRESS="127.0.0.1:1").code == 4


def test_1_without_a_worker_and_no_hanging(desk: Desk) -> None:
    plan = desk.plan("web")
    ran = desk.program("precheck", plan, TEMPORAL_NAMESPACE=EMPTY_NAMESPACE)
    assert ran.code == 1
    assert "no worker polls the task queue 'control'" in ran.err
    started = desk.program("migrate", plan, TEMPORAL_NAMESPACE=EMPTY_NAMESPACE)
    assert started.code == 0
    assert "migrations begin when one does" in started.err


def test_130_leaves_the_migration_alone(desk: Desk) -> None:
    plan = desk.plan("web")
    assert desk("migrate", plan).code == 0
    assert desk.phase_of(plan, "web") == "baseline"
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "starter.py", "watch", f"{plan.stem}/web"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=desk.directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as watch:  # fmt: skip
        assert watch.stdout is not None
        line = watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=60)
    assert line.startswith(f"{plan.stem}/web:  baseline")
    assert watch.returncode == 130
    assert err == "left: the migration goes on; whimbrel status shows it\n"
    assert desk.phase_of(plan, "web") == "baseline"


def test_live_bars_on_a_terminal(desk: Desk) -> None:
    plan = desk.plan("web")
    assert desk("migrate", plan).code == 0
    ours, theirs = os.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    watch = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "starter.py"), "watch", str(plan)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True, cwd=desk.directory,
    )  # fmt: skip
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 90
    try:
        while "Ctrl-C leaves the migration alone" not in seen and time.monotonic() < deadline:
            seen += os.read(ours, 65536).decode(errors="replace")
        os.killpg(watch.pid, signal.SIGINT)
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # Linux says EIO once the other side is closed
                break
            if not more:
                break
            seen += more.decode(errors="replace")
        assert watch.wait(60) == 130
    finally:
        if watch.poll() is None:
            watch.kill()
            watch.wait()
        os.close(ours)
    for words in ("━", "25.0 %", "1 GiB of 4 GiB", "1 MiB/s", "ETA 1 min 30 s", "outage if cut over now: 17 s"):
        assert words in seen, words
    assert "left: the migration goes on" in seen
    assert desk.phase_of(plan, "web") == "baseline"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_dev_server_leaves_nothing_running(tmp_path: Path, ending: signal.Signals) -> None:
    port, ui_port = lend_port(), lend_port()
    words: list[str | Path] = [
        "dev-server",
        "--directory",
        tmp_path / "t",
        "--port",
        str(port),
        "--ui-port",
        str(ui_port),
        "--json",
    ]
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "starter.py", *words], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as program:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())["result"]["address"] == f"127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        program.send_signal(ending)
        assert program.wait(60) == 130
    assert not answers(port)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_debug_shows_where_it_came_from_and_nothing_else_does(desk: Desk) -> None:
    quiet = desk.program("status", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert "Traceback" not in quiet.err
    loud = desk.program("status", "--debug", TEMPORAL_ADDRESS="127.0.0.1:1")
    assert loud.code == quiet.code
    assert "Traceback" in loud.err


def test_a_closed_pipe_is_no_error(desk: Desk) -> None:
    done = subprocess.run(
        f"{sys.executable} {REPOSITORY / 'starter.py'} schema plan | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr


def test_the_numbers_are_documented() -> None:
    text = (REPOSITORY / "docs" / "operator.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} |" in text, code


def test_importing_it_runs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import starter; print('imported')"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "imported\n")
