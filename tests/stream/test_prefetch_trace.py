"""The trace format: what is written is read, what was torn off or damaged is left out; the recorder; the tool."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nbd.programs import listens
from tests.stream.streams import REPOSITORY, Process, client_of, config_for, make_source, process, until
from whimbrel.errors import Conflict, InvalidPlan, NotFound, Unavailable
from whimbrel.stream.prefetch.convert import from_qemu_log
from whimbrel.stream.prefetch.recorder import Recorder
from whimbrel.stream.prefetch.replay import bursts
from whimbrel.stream.prefetch.summary import summary
from whimbrel.stream.prefetch.tool import main
from whimbrel.stream.prefetch.trace import (
    KINDS,
    TICK_S,
    Record,
    TraceHeader,
    TraceWriter,
    read_trace,
    write_trace,
)

SIZE = (1 << 40) + 512 * 3
HEADER = TraceHeader(SIZE, 65536, "disk of a test, é", 1e9)
FIXTURES = [HealthCheck.function_scoped_fixture]


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    found: list[Record] = []
    ticks = 0
    for _ in range(draw(st.integers(0, 40))):
        ticks += draw(st.one_of(st.integers(0, 20), st.integers(0, 10**9)))
        first = draw(st.integers(0, SIZE // 512 - 1))
        count = draw(st.one_of(st.integers(1, 64), st.integers(1, 1 << 16)))
        if draw(st.booleans()) and found:
            first = min((found[-1].offset + found[-1].length) // 512, SIZE // 512 - 1)
        length = min(count * 512, SIZE - first * 512)
        found.append(Record(ticks * TICK_S, draw(st.sampled_from(KINDS)), first * 512, length))
    return found


def same(one: Record, other: Record) -> bool:
    return one[1:] == other[1:] and abs(one.at_s - other.at_s) < TICK_S / 2


def all_same(some: list[Record], others: list[Record]) -> bool:
    return len(some) == len(others) and all(map(same, some, others))


@settings(suppress_health_check=FIXTURES, max_examples=60, deadline=None)
@given(segments=st.lists(records(), max_size=3))
def test_what_is_written_is_read(tmp_path: Path, segments: list[list[Record]]) -> None:
    path = tmp_path / "t"
    write_trace(path, HEADER, segments)
    trace = read_trace(path)
    assert trace.header == HEADER
    assert not trace.torn
    assert not trace.full
    assert len(trace.segments) == len(segments)
    assert all(all_same(list(found), wanted) for found, wanted in zip(trace.segments, segments, strict=True))
    times = [each.at_s for each in trace.records]
    assert times == sorted(times)


@settings(suppress_health_check=FIXTURES, max_examples=60, deadline=None)
@given(batches=st.lists(records(), min_size=1, max_size=4), data=st.data())
def test_a_torn_or_damaged_tail_costs_only_what_follows_it(
    tmp_path: Path, batches: list[list[Record]], data: st.DataObject
) -> None:
    path = tmp_path / "t"
    path.unlink(missing_ok=True)
    writer = TraceWriter(path, HEADER)
    ends = [writer.size_bytes]
    wanted: list[list[Record]] = []
    base = 0.0
    for batch in batches:
        shifted = [each._replace(at_s=base + each.at_s) for each in batch]
        base = shifted[-1].at_s if shifted else base
        writer.append(shifted)
        ends.append(writer.size_bytes)
        wanted.append(shifted)
    writer.close()
    raw = bytearray(path.read_bytes())
    header_bytes = len(HEADER.pack())
    at = data.draw(st.integers(header_bytes, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= data.draw(st.integers(1, 255))
    else:
        del raw[at:]
    path.write_bytes(raw)
    whole = sum(end <= at for end in ends[1:]) if at >= ends[0] else 0
    trace = read_trace(path)
    kept = [each for batch in wanted[:whole] for each in batch]
    assert all_same([each for segment in trace.segments for each in segment], kept)
    # Continued after the damage: nothing of before is lost, nothing of after is mixed into it.
    later = TraceWriter(path, HEADER)
    more = [Record(1.0, "read", 512, 512)]
    later.append(more)
    later.close()
    again = read_trace(path)
    assert not again.torn
    assert all_same([each for segment in again.segments[:-1] for each in segment], kept)
    assert all_same(list(again.segments[-1]), more)


def test_a_bound_and_word_of_it(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "t"
    writer = TraceWriter(path, HEADER, max_bytes=4096)
    for step in range(100):
        writer.append(Record(step, "read", rng.randrange(1 << 30) * 512, 4096) for _ in range(20))
    writer.close()
    assert writer.full
    assert path.stat().st_size <= 4096
    trace = read_trace(path)
    assert trace.full
    assert not trace.torn
    assert len(trace.segments[0]) > 100
    TraceWriter(path, HEADER, max_bytes=4096).close()  # a full trace is not continued
    assert path.stat().st_size <= 4096
    assert read_trace(path).segments == trace.segments


def test_what_is_no_trace_or_of_another_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(NotFound):
        read_trace(path)
    path.write_bytes(b"something else that is long enough to be a header, and is none")
    with pytest.raises(InvalidPlan, match="not a trace"):
        read_trace(path)
    write_trace(path, HEADER, [])
    with pytest.raises(Conflict, match="not of 'other'"):
        TraceWriter(path, TraceHeader(SIZE, 65536, "other"))
    raw = bytearray(path.read_bytes())
    raw[8] = 9
    path.write_bytes(raw)
    with pytest.raises(InvalidPlan, match="version 9"):
        read_trace(path)
    raw[8], raw[-1] = 1, raw[-1] ^ 1
    raw[20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InvalidPlan, match="damaged"):
        read_trace(path)


def test_it_is_compact(tmp_path: Path) -> None:
    rng = random.Random(1)
    some = [Record(n * 0.003, "read", rng.randrange(1 << 22) * 4096, 4096) for n in range(10_000)]
    write_trace(tmp_path / "t", HEADER, [some])
    assert (tmp_path / "t").stat().st_size < 8 * len(some)


def test_a_recorder_writes_while_it_runs_and_at_its_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t", HEADER, every_s=0.05)
    now = time.monotonic()
    for step in range(100):
        recorder.note(step * 512, 512, "read", now + step * 0.001)
    until(lambda: read_trace(tmp_path / "t").segments[0], "records in the file")
    recorder.note(0, 65536, "trim", now + 1)
    recorder.stop()
    (segment,) = read_trace(tmp_path / "t").segments
    assert [each.offset for each in segment] == [*range(0, 51200, 512), 0]
    assert segment[-1].access == "trim"
    assert abs(segment[-1].at_s - segment[0].at_s - 1) < 1e-4
    assert recorder.report()["records"] == 101
    with pytest.raises(Unavailable):
        Recorder(tmp_path / "no" / "t", HEADER)


def test_a_recording_that_fails_is_told_and_forgotten(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t", HEADER, every_s=60)
    os.close(recorder._writer.fd)
    recorder.note(0, 512, "read", time.monotonic())
    recorder._write()
    assert recorder.report()["error"]
    recorder.note(0, 512, "read", time.monotonic())
    recorder._write()
    assert not recorder._waiting
    recorder.stop()


def test_recording_costs_next_to_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t", HEADER, every_s=60)
    costs = []
    # The least of many: the time of a thread may include what its machine did meanwhile.
    for _ in range(20):
        began = time.thread_time()
        for step in range(5_000):
            recorder.note(step, 512, "read", 1.0)
        costs.append((time.thread_time() - began) / 5_000)
    assert min(costs) < 10e-6
    recorder.stop()


def test_a_server_records_across_its_death(spot: Path) -> None:
    content = make_source(spot / "source.raw", 64 * 65536)
    config = config_for(spot, len(content), trace_path=str(spot / "trace"))
    with process(spot, config) as server:
        _read(server, [3, 9, 4])
        until(lambda: sum(1 for _ in read_trace(spot / "trace").records) == 3, "the first records")
        server.kill()
        with (spot / "trace").open("ab") as file:
            file.write(b"\x01torn")
        server.start()
        _read(server, [17, 3])
        assert server.ask("prefetch")["reads"]["hits"] + server.ask("prefetch")["reads"]["misses"] == 2
        assert server.status()["trace"]["error"] is None
        assert server.terminate() == 0
    trace = read_trace(spot / "trace")
    assert [[each.offset // 65536 for each in segment] for segment in trace.segments] == [[3, 9, 4], [17, 3]]
    assert trace.header.identity == "test"
    told = summary(trace)
    assert told["requests"] == {"read": 5, "write": 0, "trim": 0}
    assert told["chunks_read"] == 4


def _read(server: Process, chunks: list[int]) -> None:
    client = client_of(server.config)
    try:
        lane = client.lane()
        for chunk in chunks:
            lane.submit_read(chunk * 65536, memoryview(bytearray(4096)))
            lane.reap()
        lane.close()
    finally:
        client.close()


LOG = """\
some other line
1234@1700000000.000100:blk_co_preadv blk 0x55d0 bs 0x55d1 offset 65536 bytes 4096 flags 0x0
1234@1700000000.000300:blk_co_pwritev blk 0x55d0 bs 0x55d1 offset 0 bytes 512 flags 0x10
1234@1700000001.000300:blk_co_preadv blk 0x77 bs 0x78 offset 4096 bytes 512 flags 0x0
"""


def test_qemus_log_becomes_a_trace() -> None:
    with pytest.raises(InvalidPlan, match=r"0x55d0 \(2 accesses\), 0x77 \(1 accesses\)"):
        from_qemu_log(LOG.splitlines(), 1 << 20)
    found = from_qemu_log(LOG.splitlines(), 1 << 20, blk="0x55d0")
    assert all_same(found, [Record(0.0, "read", 65536, 4096), Record(0.0002, "write", 0, 512)])
    with pytest.raises(InvalidPlan, match="the disk ends"):
        from_qemu_log(LOG.splitlines(), 65536, blk="0x55d0")
    with pytest.raises(InvalidPlan, match="no blk_co"):
        from_qemu_log([], 65536)


def test_bursts() -> None:
    times = [0.0, 0.0001, 0.5, 0.5001, 0.5002, 2.0]
    found = [(round(pause, 4), len(burst)) for pause, burst in bursts(Record(at, "read", 0, 512) for at in times)]
    assert found == [(0.0, 2), (0.4999, 3), (1.4998, 1)]


def test_the_tool_records_inspects_converts_and_replays(spot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = make_source(spot / "disk.raw", 64 * 65536)
    command = [sys.executable, "-m", "whimbrel.stream.prefetch", "record", str(spot / "disk.raw"), str(spot / "t")]
    recording = subprocess.Popen(
        [*command, f"--socket={spot / 'nbd'}"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        until(lambda: listens(spot / "nbd") or recording.poll() is not None, "the server")
        (spot / "log").write_text(LOG)
        convert = ["convert", str(spot / "log"), str(spot / "in"), f"--size-bytes={len(content)}", "--blk=0x55d0"]
        assert main(convert) == 0
        assert main(["replay", str(spot / "in"), f"--socket={spot / 'nbd'}"]) == 0
    finally:
        recording.terminate()
        told, _ = recording.communicate(timeout=60)
    assert '"read": 1' in told
    capsys.readouterr()
    assert main(["inspect", str(spot / "t")]) == 0
    assert '"write": 1' in capsys.readouterr().out
    changed = (spot / "disk.raw").read_bytes()
    assert changed[512:] == content[512:]  # the disk was served in place: only the write of the trace went there
    assert changed[:512] == b"\x5a" * 512
    assert main(["inspect", str(spot / "log")]) == 1
    assert "not a trace" in capsys.readouterr().err
