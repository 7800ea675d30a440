"""fio's nbd engine as a client: what it writes it reads back, while the disk arrives and the shadow follows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bench.stream_bench import fio_engine
from tests.stream.streams import MIB, config_for, make_source, process, until
from whimbrel.model.endpoint import FileEndpoint
from whimbrel.stream.protect import ProtectConfig

SIZE = 16 * MIB


@pytest.mark.interop
@pytest.mark.skipif(not fio_engine(), reason="fio is not installed, or built without its nbd engine")
@pytest.mark.parametrize("mode", ["none", "mirror"])
def test_fio_verifies_what_it_wrote(spot: Path, mode: str) -> None:
    make_source(spot / "source.raw", SIZE)
    protect = ProtectConfig()
    if mode == "mirror":
        shutil.copy(spot / "source.raw", spot / "shadow.raw")
        protect = ProtectConfig(mode="mirror", shadow=FileEndpoint(path=str(spot / "shadow.raw"), writable=True))
    with process(spot, config_for(spot, SIZE, protect=protect)) as server:
        argv = ["fio", "--name=v", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={spot / 'nbd'}", "--rw=randwrite"]
        argv += ["--bsrange=4k-128k", "--iodepth=16", f"--size={SIZE}", "--verify=crc32c", "--do_verify=1"]
        argv += ["--verify_fatal=1", "--verify_state_save=0", "--fsync=50"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "verify:" not in done.stdout
        until(lambda: server.status()["complete"], "end of the hydration")
        assert server.terminate() == 0
    if mode == "mirror":
        assert (spot / "shadow.raw").read_bytes() == (spot / "target.raw").read_bytes()
