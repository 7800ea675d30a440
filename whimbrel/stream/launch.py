"""Start a streaming server that outlives who started it, or adopt the one that runs; stop it again.

Both may be called any number of times, by any number of processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from whimbrel.errors import Conflict, Unavailable
from whimbrel.stream import held
from whimbrel.stream.config import StreamConfig, read_config
from whimbrel.stream.control import ask
from whimbrel.stream.supervise import lock_path

Launcher = Literal["process", "systemd"]

START_S: Final = 30.0
STOP_S: Final = 60.0
POLL_S: Final = 0.05
LOG_TAIL_BYTES: Final = 1500
KEPT_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
"""The worker's environment may hold secrets; the server needs none of them."""


def launch(config_path: Path, *, launcher: Launcher = "process", timeout_s: float = START_S) -> None:
    """Return when the server of this configuration answers on its control socket.

    ``process``: detached, under the supervisor, its output in ``<config>.log``. ``systemd``: the template unit
    ``whimbrel-stream@`` with the configuration's path as its instance. Raises InvalidPlan (bad configuration), Conflict
    (another stream's server answers there), Unavailable (does not answer in time; with the log's last lines).
    """
    config = read_config(config_path)
    with _alone(config_path):

        def well() -> bool:
            return _runs(config) and (launcher == "systemd" or _supervisor(config_path) is not None)

        if well():
            return
        # One that runs unsupervised gets a parent, which waits for its end.
        if launcher == "systemd":
            _systemctl("start", unit_of(config_path))
        else:
            _spawn(config_path)
        if not _within(timeout_s, well):
            raise Unavailable(
                f"the streaming server of {config_path} does not answer {timeout_s:g} s after its start: "
                f"{_tail(config_path) if launcher == 'process' else 'see its journal'}",
                action="mend what its log names; it is tried again by itself meanwhile",
            )


def stop(
    control_path: Path, *, config_path: Path | None = None, keep_socket: bool = False, timeout_s: float = STOP_S
) -> None:
    """End a server in order; returns when its process is gone. A server that is not there is fine.

    With ``config_path`` its supervisor is ended too, which otherwise starts a server again that died just now, and then
    the holder of HTTP's socket: readers are refused from then on. With ``keep_socket`` they wait for the next launch.
    Raises Unavailable if it does not end in time.
    """
    deadline = time.monotonic() + timeout_s
    if config_path is not None and (supervisor := _supervisor(config_path)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
        if not _within(timeout_s, lambda: _supervisor(config_path) is None):
            raise Unavailable(f"the supervisor of {config_path} (process {supervisor}) does not end")
    _stop_server(control_path, deadline)
    if config_path is not None and not keep_socket:
        held.release(config_path)


def _stop_server(control_path: Path, deadline: float) -> None:
    try:
        pid = int(ask(control_path, "status")["pid"])
        ask(control_path, "stop")
    except Unavailable:
        # Not there; or it ends already and does not answer any more, but then its socket is gone soon.
        if not _within(max(deadline - time.monotonic(), 1.0), lambda: not _answers(control_path)):
            raise
        return
    if not _within(max(deadline - time.monotonic(), 1.0), lambda: not _alive(pid)):
        raise Unavailable(
            f"the streaming server at {control_path} (process {pid}) does not end",
            action="look at its target's storage: it syncs everything before it ends",
        )


def unit_of(config_path: Path) -> str:
    """The systemd unit of a configuration: its path as the instance, escaped as systemd.unit(5) says."""
    text = str(config_path.resolve()).strip("/")
    escaped = "".join(
        "-" if char == "/" else char if re.fullmatch(r"[a-zA-Z0-9:_.]", char) else _escaped(char) for char in text
    )
    return f"whimbrel-stream@{escaped.replace('.', _escaped('.'), 1) if text.startswith('.') else escaped}.service"


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def _status(control_path: Path) -> dict[str, Any] | None:
    try:
        return ask(control_path, "status")
    except Unavailable:
        return None


def _answers(control_path: Path) -> bool:
    return _status(control_path) is not None


def _runs(config: StreamConfig) -> bool:
    status = _status(Path(config.control_path))
    if status is None:
        return False
    wanted = {"target_path": config.target_path, "source_identity": config.source_identity}
    found = {key: status.get(key) for key in wanted}
    if found != wanted:
        raise Conflict(
            f"another stream's server answers at {config.control_path}",
            action="stop it, or give this stream another control path",
            runs=found["target_path"],
            wanted=config.target_path,
        )
    return True


def _spawn(config_path: Path) -> None:
    package = Path(__file__).resolve().parents[2]
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    argv = [sys.executable, "-m", "whimbrel.stream", "--supervise", "--detach", str(config_path.resolve())]
    with _log_of(config_path).open("ab") as log:
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**kept, "PYTHONPATH": str(package)},
            close_fds=True,
            check=False,
            timeout=START_S,
        )


def _systemctl(verb: str, unit: str) -> None:
    try:
        done = subprocess.run(
            ["systemctl", verb, unit], capture_output=True, text=True, check=False, timeout=2 * STOP_S
        )
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise Unavailable(f"systemctl {verb} {unit} failed: {failed}", cause=failed) from failed
    if done.returncode:
        raise Unavailable(
            f"systemctl {verb} {unit} failed: {done.stderr.strip()[-500:]}",
            action="install deploy/systemd/whimbrel-stream@.service, and look at its journal",
        )


def _log_of(config_path: Path) -> Path:
    return config_path.with_name(config_path.name + ".log")


def _tail(config_path: Path) -> str:
    try:
        return _log_of(config_path).read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return "it left no log"


def _supervisor(config_path: Path) -> int | None:
    """The pid of the supervisor if it lives: it holds its lock."""
    try:
        fd = os.open(lock_path(config_path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(fd, 20, 0) or b"0") or None
    finally:
        os.close(fd)
    return None


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


@contextlib.contextmanager
def _alone(config_path: Path) -> Iterator[None]:
    """Launches of one configuration take turns."""
    fd = os.open(config_path.with_name(config_path.name + ".launch"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
