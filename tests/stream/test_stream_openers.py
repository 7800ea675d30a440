"""Sources that only a driver can open: the configuration names its opener, the server loads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.stream.streams import MIB, REPOSITORY, client_of, config_for, make_source, process
from whimbrel.model.endpoint import RbdEndpoint

SIZE = 4 * MIB


def test_a_source_is_read_by_the_opener_that_the_configuration_names(spot: Path) -> None:
    content = make_source(spot / "source.raw", SIZE)
    source = RbdEndpoint(pool=str(spot), image="source.raw")
    config = config_for(spot, SIZE, openers={"rbd": "tests.stream.opening:open_file"})
    with process(spot, config.model_copy(update={"source": source})) as server:
        device = client_of(config)
        lane, buffer = device.lane(), memoryview(bytearray(SIZE))
        lane.submit_read(0, buffer)
        lane.reap()
        device.close()
        assert bytes(buffer) == content
        server.ask("source", endpoint=source.model_dump(mode="json"))
        assert server.terminate() == 0


@pytest.mark.parametrize("where", ["tests.stream.opening:nothing", "tests.stream.nowhere:open_file"])
def test_an_opener_that_is_not_there_is_a_bad_configuration(spot: Path, where: str) -> None:
    make_source(spot / "source.raw", SIZE)
    (spot / "config.json").write_text(config_for(spot, SIZE, openers={"rbd": where}).model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "whimbrel.stream", str(spot / "config.json")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "endpoints of kind rbd cannot be opened" in done.stderr


def test_an_opener_is_a_name_and_nothing_else(spot: Path) -> None:
    with pytest.raises(ValidationError):
        config_for(spot, SIZE, openers={"rbd": "os:system('ls')"})
