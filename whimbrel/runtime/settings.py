"""Settings of a worker process, from the environment (``WHIMBREL_...``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """Everything a worker can be told from outside; clouds and their credentials are in ``whimbrel.yaml``."""

    model_config = SettingsConfigDict(env_prefix="WHIMBREL_", extra="ignore")

    config: Path | None = None
    """Path of ``whimbrel.yaml``; None looks in the usual places."""
    site: str | None = None
    """Site whose data this worker moves: it serves the task queue ``data-<site>``. None: ``site`` of the file."""
    state_dir: Path | None = None
    """Manifests are kept here; copies resume only while it survives. None: ``state_dir`` of the file."""
    socket_dir: Path | None = None
    """Sockets of streaming servers, on the host of the target VMs: QEMU connects there. None: below ``state_dir``."""
    stream_launcher: Literal["process", "systemd"] = "process"
    """Who keeps streaming servers running: a supervising process of their own, or systemd (``whimbrel-stream@``)."""
    queues: str = "control,data"
    """Which queues to serve: ``control``, ``data`` or both."""
    max_copies: int = Field(default=8, ge=1)
    """Disks copied at once by this worker."""
    max_calls: int = Field(default=32, ge=1)
    """Cloud calls at once by this worker."""
    graceful_shutdown_s: float = 45.0
    no_progress_s: float = 600.0
    """A copy without a byte of progress for so long fails its attempt."""
    metrics_address: str | None = None
    """Where Prometheus metrics are served, for example ``127.0.0.1:9464``; None serves none."""
    health_file: Path | None = None
    """Touched every few seconds while the worker is polling; for probes of supervisors."""
    host_bandwidth: float | None = None
    """Bytes per second for all copies of this worker together. None: ``host_bandwidth`` of the file."""
    log_format: str = "auto"
    """``json``, ``console``, or ``auto``: console on a terminal."""
    log_level: str = "info"
