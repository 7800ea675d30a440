"""The benchmark itself: it runs, says what it promises, and would not take a wrong copy for a good one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import dual_attach_bench
from tests.bench.disks import MIB, differ, empty, half_empty, sparse


@pytest.mark.interop
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="needs qemu-nbd")
def test_the_benchmark_runs_and_tells_all_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.copy_bench", "--json", "--rounds=1", "--size-mib=16"]
    command += ["--big", "--big-mib=8", "--big-rounds=1", "--variant=1:256:4", f"--directory={tmp_path}"]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    (only,) = told["rounds"]
    assert {"whimbrel", "whimbrel 1:256:4"} <= only.keys() == told["medians"].keys()
    assert only["whimbrel"]["sent_mib"] == told["data_mib"]
    for name in ("4 GiB", "1 TiB"):
        figures = told["big"]["rounds"][0][name]
        assert figures["sent_mib"] == told["big"]["data_mib"] == 8
        assert figures["elapsed_s"] > 0
        assert figures["rss_mib"] < 150
        assert figures["manifest_kib"] < 8192
    assert not list(tmp_path.iterdir())


def test_images_are_as_promised(tmp_path: Path) -> None:
    data_bytes = half_empty(tmp_path / "a", 64 * MIB, seed=3)
    assert 8 * MIB < data_bytes < 56 * MIB
    sparse(tmp_path / "b", 1 << 40, 16 * MIB, seed=3)
    assert (tmp_path / "b").stat().st_size == 1 << 40
    assert 16 * MIB <= (tmp_path / "b").stat().st_blocks * 512 < 32 * MIB


@pytest.mark.parametrize("at", [0, 5 * MIB, (1 << 40) - 1])
def test_one_wrong_byte_is_found_on_either_side(tmp_path: Path, at: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    sparse(one, 1 << 40, 8 * MIB, seed=3)
    empty(other, 1 << 40)
    assert differ(one, other)
    sparse(other, 1 << 40, 8 * MIB, seed=3)
    assert not differ(one, other)
    with other.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    assert differ(one, other)
    assert differ(other, one)


def test_handovers_are_shown_with_where_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    spent = {"calls": 2, "queued_s": 0.1, "worked_s": 0.5}
    found = {"vms": 2, "at_once": 1, "elapsed_s": 4.0, "per_minute": 30.0, "load": [0.5, 1.0]}
    acts = {"handover.adopt": {**spent, "worked_s": 0.1}, "precheck.run": spent}
    dual_attach_bench.show({**found, "activities": acts})
    told = capsys.readouterr().out.splitlines()
    assert "30 VMs a minute" in told[0]
    assert [line.split()[0] for line in told[2:]] == ["precheck.run", "handover.adopt"]
