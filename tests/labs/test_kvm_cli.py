"""``python -m labs.kvm`` as a person uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labs.kvm import KvmLab
from labs.kvm.__main__ import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(lab_root: Path, *words: str) -> tuple[int, str, str]:
        code = main(["--root", str(lab_root), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_status_of_nothing_says_how_to_begin(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "status")
    assert code == 1
    assert "python -m labs.kvm up" in out


def test_a_bad_name_is_one_line_and_no_traceback(run: Run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "guest", "console", "../etc")
    assert code == 1
    assert err.startswith("labs.kvm: guest name")
    assert err.count("\n") == 1


@pytest.mark.lab
@pytest.mark.timeout(400)
def test_a_guests_life(run: Run, kvm_lab: KvmLab) -> None:
    root = kvm_lab.layout.root
    try:
        assert run(root, "up", "--clouds", "a,b")[0] == 0
        assert run(root, "guest", "create", "by-hand", "--size-mib", "16", "--disks", "2")[0] == 0
        assert run(root, "guest", "create", "by-hand", "--size-mib", "16", "--disks", "2")[0] == 0
        assert run(root, "guest", "start", "by-hand")[0] == 0
        assert f"{root}\n" in run(root, "list")[1]
        code, out, _ = run(root, "status", "--json")
        assert code == 0
        assert json.loads(out)[0]["guests"]["by-hand"] is True
        assert run(root, "guest", "ask", "by-hand", "ping")[1] == "pong\n"
        assert run(root, "guest", "ask", "by-hand", "stop-writing")[0] == 0
        code, out, _ = run(root, "guest", "hash", "by-hand", "vdb")
        assert len(bytes.fromhex(out.strip())) == 32
        code, _, err = run(root, "guest", "hash", "by-hand", "vdz")
        assert code == 1
        assert "no disk vdz" in err
        assert "powered off" in run(root, "guest", "stop", "by-hand")[1]
        code, out, _ = run(root, "guest", "records", "by-hand")
        assert code == 0
        assert "boots 1" in out
        assert "lost 0" in out
        assert "WB STOPPED boot=1" in run(root, "guest", "console", "by-hand")[1]
    finally:
        assert run(root, "guest", "remove", "by-hand")[0] == 0
    assert "by-hand" not in json.loads(run(root, "status", "--json")[1])[0]["guests"]
