"""A stream that begins on a copied target, and the comparison of what the guest never wrote."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stream.streams import CHUNK, config_for, make_source, until
from whimbrel.dataplane import open_device
from whimbrel.errors import NotReady
from whimbrel.model.endpoint import FileEndpoint, NbdEndpoint
from whimbrel.model.extent import Extent
from whimbrel.nbd import open_nbd
from whimbrel.ports.block import BlockDevice
from whimbrel.stream import StreamConfig, StreamServer
from whimbrel.stream.chunkmap import open_map
from whimbrel.stream.proof import Proof, prove
from whimbrel.stream.seed import seed_map
from whimbrel.stream.server import target_identity

SIZE = 40 * CHUNK + 4096


@contextmanager
def serving(config: StreamConfig) -> Iterator[StreamServer]:
    """A server in this process."""
    server = StreamServer(config)
    try:
        yield server
    finally:
        server.stop()


def write(config: StreamConfig, offset: int, data: bytes) -> None:
    """As the guest does."""
    device = open_nbd(NbdEndpoint(unix_path=config.listen[0].unix_path, export=config.export, writable=True))
    lane = device.lane()
    lane.submit_write(offset, memoryview(data))
    lane.reap()
    device.close()


def proof_of(config: StreamConfig) -> Proof:
    """The comparison with the source."""
    source: BlockDevice = open_device(config.source)
    try:
        made = prove(config, source)
    finally:
        source.close()
    assert made is not None
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5 * CHUNK)), max_size=8))
def test_exactly_what_changed_is_missing(spans: list[tuple[int, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        target = directory / "target.raw"
        target.write_bytes(random.Random(1).randbytes(SIZE))
        config = config_for(directory, SIZE, FileEndpoint(path=str(target)))
        extents = [Extent(at, min(length, SIZE - at)) for at, length in spans]
        assert seed_map(config, extents)
        assert not seed_map(config, [])  # a stream that has begun is left alone
        made = open_map(
            Path(config.map_stem), size_bytes=SIZE, source=config.source_identity, target=target_identity(target)
        )
        try:
            for chunk in range(made.chunks):
                first, end = chunk * CHUNK, min((chunk + 1) * CHUNK, SIZE)
                changed = any(extent.start < end and extent.end > first for extent in extents)
                assert made.is_local(chunk, chunk + 1) is not changed, chunk
            assert made.written_chunks == 0
        finally:
            made.close()


def test_a_seeding_that_was_killed_is_done_again(tmp_path: Path) -> None:
    make_source(tmp_path / "source.raw", SIZE)
    target = tmp_path / "target.raw"
    target.write_bytes((tmp_path / "source.raw").read_bytes())
    config = config_for(tmp_path, SIZE)
    # Killed between its two renames, and another time before them.
    Path(f"{config.map_stem}.live").write_bytes(b"half a map")
    Path(f"{config.map_stem}.seed.durable").write_bytes(b"old")
    assert seed_map(config, [Extent(0, 1)])
    assert not list(tmp_path.glob("*.seed.*"))
    with serving(config) as server:
        until(lambda: server.status()["complete"], "complete stream")
        assert server.fetcher.statistics.background_bytes <= 2 * CHUNK


def test_a_copied_target_is_finished_from_the_changed_source(tmp_path: Path) -> None:
    content = bytearray(make_source(tmp_path / "source.raw", SIZE))
    (tmp_path / "target.raw").write_bytes(content)
    changed = [Extent(3 * CHUNK + 17, 100), Extent(20 * CHUNK, 2 * CHUNK)]
    with (tmp_path / "source.raw").open("r+b") as file:
        for extent in changed:
            fresh = random.Random(extent.start).randbytes(extent.length)
            content[extent.start : extent.end] = fresh
            file.seek(extent.start)
            file.write(fresh)
    config = config_for(tmp_path, SIZE)
    seed_map(config, changed)
    with serving(config) as server:
        assert server.status()["missing_chunks"] in {0, 1, 2, 3}
        until(lambda: server.status()["complete"], "complete stream")
        proof = proof_of(config)
        assert proof.mismatches == 0
        assert proof.compared_bytes == SIZE
    assert (tmp_path / "target.raw").read_bytes() == bytes(content)


def test_what_the_guest_wrote_is_left_out_and_all_else_compared(tmp_path: Path) -> None:
    make_source(tmp_path / "source.raw", SIZE)
    config = config_for(tmp_path, SIZE)
    with serving(config) as server:
        write(config, 5 * CHUNK + 512, b"guest" * 10)
        write(config, 9 * CHUNK, bytes(3 * CHUNK))
        until(lambda: server.status()["complete"], "complete stream")
        proof = proof_of(config)
        assert proof.mismatches == 0
        assert proof.written_bytes == 4 * CHUNK
        assert proof.compared_bytes == SIZE - 4 * CHUNK


def test_a_wrong_byte_is_found_where_it_is(tmp_path: Path) -> None:
    make_source(tmp_path / "source.raw", SIZE, share=1.0)
    config = config_for(tmp_path, SIZE)
    with serving(config) as server:
        until(lambda: server.status()["complete"], "complete stream")
        good = proof_of(config)
        for at in (7 * CHUNK + 3, SIZE - 1):
            with (tmp_path / "target.raw").open("r+b") as file:
                file.seek(at)
                old = file.read(1)
                file.seek(at)
                file.write(bytes([old[0] ^ 1]))
        bad = proof_of(config)
    assert good.mismatches == 0
    assert bad.mismatches == 2
    assert bad.first_mismatches == (7 * CHUNK, 40 * CHUNK)
    assert bad.digest != good.digest


def test_junk_in_a_hole_of_the_source_is_found(tmp_path: Path) -> None:
    with (tmp_path / "source.raw").open("wb") as file:
        file.truncate(SIZE)
    config = config_for(tmp_path, SIZE)
    with serving(config) as server:
        until(lambda: server.status()["complete"], "complete stream")
        with (tmp_path / "target.raw").open("r+b") as file:
            file.seek(2 * CHUNK + 1)
            file.write(b"x")
        assert proof_of(config).first_mismatches == (2 * CHUNK,)


def test_a_disk_that_is_not_there_yet_proves_nothing(tmp_path: Path) -> None:
    make_source(tmp_path / "source.raw", SIZE, share=1.0)
    config = config_for(tmp_path, SIZE, background=False)
    with serving(config), pytest.raises(NotReady):
        proof_of(config)
