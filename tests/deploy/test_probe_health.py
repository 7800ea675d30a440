"""deploy/probe-health: the one probe of supervisors, containers and Kubernetes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

PROBE = Path(__file__).resolve().parents[2] / "deploy/probe-health"


def probe(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROBE, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)


def touched(path: Path, age_s: float) -> Path:
    path.touch()
    moment = time.time() - age_s
    os.utime(path, (moment, moment))
    return path


def test_a_young_file_is_good(tmp_path: Path) -> None:
    assert probe(touched(tmp_path / "health", 5)).returncode == 0
    assert probe(touched(tmp_path / "health", 100), 3600).returncode == 0


def test_an_old_file_is_not_and_its_age_is_said(tmp_path: Path) -> None:
    done = probe(touched(tmp_path / "health", 500))
    assert done.returncode == 1
    assert "last touched 5" in done.stderr


def test_a_file_that_is_not_there_is_not_good(tmp_path: Path) -> None:
    done = probe(tmp_path / "health")
    assert done.returncode == 1
    assert "is not there" in done.stderr


def test_a_name_with_spaces_or_a_dash_is_a_name(tmp_path: Path) -> None:
    assert probe(touched(tmp_path / "a b", 1)).returncode == 0
    assert probe(touched(tmp_path / "-f", 1)).returncode == 0


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c"), ("a", "1m"), ("a", "")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert probe(*arguments).returncode == 2
