"""deploy/install-system and .ci/count_tests.py: what is missing is said, and a run of nothing is not green."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = REPOSITORY / "deploy/debian-packages.txt"
OPENSTACK_PACKAGES = REPOSITORY / "deploy/debian-packages-openstack.txt"
SCRIPT = REPOSITORY / "deploy/install-system"


def wanted(packages: Path = PACKAGES) -> list[str]:
    lines = (line.split("#")[0].strip() for line in packages.read_text().splitlines())
    return [line for line in lines if line]


def fake(directory: Path, name: str, body: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def run(programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False, env=environment)


INSTALLED_BUT_NBDKIT = 'for last; do :; done; [ "$last" != nbdkit ] || [ -e "$0.nbdkit" ] || exit 1; printf installed'


@pytest.mark.parametrize("packages", [PACKAGES, OPENSTACK_PACKAGES], ids=lambda path: path.stem)
def test_every_package_is_named_once_with_its_reason(packages: Path) -> None:
    names = wanted(packages)
    assert len(names) == len(set(names)) >= 10
    for line in packages.read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9][a-z0-9.+-]+ +# \S.*", line), line


def test_check_lists_exactly_what_is_missing(tmp_path: Path) -> None:
    fake(tmp_path, "dpkg-query", INSTALLED_BUT_NBDKIT)
    done = run(tmp_path, "--check")
    assert done.returncode == 1
    assert "Missing Debian packages: nbdkit \n" in done.stderr
    assert "apt-get install --yes --no-install-recommends nbdkit" in done.stderr


def test_a_labs_own_list_is_looked_at_only_when_asked_for(tmp_path: Path) -> None:
    assert not set(wanted()) & set(wanted(OPENSTACK_PACKAGES))
    fake(tmp_path, "dpkg-query", INSTALLED_BUT_NBDKIT.replace("nbdkit", "ceph-osd"))
    assert run(tmp_path, "--check").returncode == 0
    done = run(tmp_path, "--check", "--openstack")
    assert done.returncode == 1
    assert "Missing Debian packages: ceph-osd \n" in done.stderr
    assert run(tmp_path, "--openstacks").returncode == 2


def test_nothing_missing_touches_nothing(tmp_path: Path) -> None:
    fake(tmp_path, "dpkg-query", "printf installed")
    fake(tmp_path, "apt-get", f"touch {tmp_path}/called")
    assert run(tmp_path).returncode == 0
    assert not (tmp_path / "called").exists()


def test_not_root_gets_the_list_and_the_command(tmp_path: Path) -> None:
    fake(tmp_path, "dpkg-query", INSTALLED_BUT_NBDKIT)
    fake(tmp_path, "id", "echo 1000")
    fake(tmp_path, "apt-get", f"touch {tmp_path}/called")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "sudo apt-get update && sudo apt-get install" in done.stderr
    assert not (tmp_path / "called").exists()


def test_root_installs_without_questions_and_tries_again(tmp_path: Path) -> None:
    fake(tmp_path, "dpkg-query", INSTALLED_BUT_NBDKIT)
    fake(tmp_path, "id", "echo 0")
    fake(tmp_path, "sleep", "exit 0")
    log, present = tmp_path / "log", tmp_path / "dpkg-query.nbdkit"
    fake(
        tmp_path,
        "apt-get",
        f'echo "$DEBIAN_FRONTEND $*" >>{log}\n'
        f'case "$*" in *install*nbdkit*) [ "$(grep -c "install.*nbdkit" {log})" -ge 2 ] || exit 100\n'
        f"touch {present};; esac",
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert all(call.startswith("noninteractive ") for call in calls)
    assert [call.split()[-2] for call in calls if "install" in call.split() and "nbdkit" in call] == [
        "--no-install-recommends"
    ] * 2
    assert "update" in calls[0]


def test_another_system_is_told_what_it_needs(tmp_path: Path) -> None:
    for program in ("sh", "sed", "dirname", "cat"):
        (tmp_path / program).symlink_to(
            f"/bin/{program}" if Path(f"/bin/{program}").exists() else f"/usr/bin/{program}"
        )
    done = subprocess.run(["/bin/sh", SCRIPT], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "no Debian" in done.stderr
    assert "qemu-utils" in done.stderr


SUITE = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("content", "code"),
    [(SUITE.format(3, 0, 1), 0), (SUITE.format(3, 1, 0), 1), (SUITE.format(2, 0, 2), 1), (SUITE.format(0, 0, 0), 1)],
)
def test_only_passed_tests_make_a_run_green(tmp_path: Path, content: str, code: int) -> None:
    result = tmp_path / "junit.xml"
    result.write_text(content)
    assert count(result) == code
    assert count(result, tmp_path / "absent.xml") == 1
    assert count() == 1


def count(*paths: Path) -> int:
    command = [sys.executable, str(REPOSITORY / ".ci/count_tests.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, check=False).returncode
