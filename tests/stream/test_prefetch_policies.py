"""Policies: never out of range, never endless, fair to the sweep, worth it, and recovering from being wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stream.simulated_link import CHUNK, Chunks, Simulation, Sweep
from tests.stream.streams import client_of, config_for, make_source, until
from whimbrel.stream import StreamServer
from whimbrel.stream.chunkmap import Run
from whimbrel.stream.config import PrefetchConfig
from whimbrel.stream.hydration import Access
from whimbrel.stream.prefetch.assembly import predictors_for
from whimbrel.stream.prefetch.blend import Blend
from whimbrel.stream.prefetch.correlation import Correlation, learn
from whimbrel.stream.prefetch.feedback import FLOOR, Score
from whimbrel.stream.prefetch.history import History, HistoryAhead, first_uses, merged
from whimbrel.stream.prefetch.locality import Locality
from whimbrel.stream.prefetch.predictor import Predictor, Proposal, Wanted
from whimbrel.stream.prefetch.runs import Runs
from whimbrel.stream.prefetch.trace import Record, Trace, TraceHeader, read_trace, write_trace

ACCESSES = st.sampled_from(("read", "read", "read", "write", "trim"))


def trace_of(chunks: list[int], count: int, step_s: float = 0.01, access: Access = "read") -> Trace:
    records = tuple(Record(n * step_s, access, chunk * CHUNK, 4096) for n, chunk in enumerate(chunks))
    return Trace(TraceHeader(count * CHUNK, CHUNK, "t"), (records,))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_order_fetches_each_chunk_once_and_ends(data: st.DataObject) -> None:
    """A guest that touches at random, with a history that may be of another, larger disk."""
    count = data.draw(st.integers(1, 300))
    chunks = Chunks(count)
    known = data.draw(st.lists(st.integers(0, count + 50), max_size=80))
    seed = data.draw(st.integers(0, 1 << 16))
    rng = random.Random(seed)
    blend = Blend(chunks, predictors_for([trace_of(known, count + 51)] if known else [], CHUNK))
    order = Sweep(chunks, blend)
    fetched = 0
    while chunks.missing:
        for _ in range(rng.randrange(3)):
            first = rng.randrange(count)
            blend.accessed(first, min(first + rng.randrange(1, 40), count), rng.choice(("read", "write", "trim")))
        longest = rng.randrange(1, 5)
        run = order.next_run(longest) if rng.random() < 0.7 else blend.next_urgent(longest)
        if run is None:
            continue
        first, last = run
        assert 0 <= first < last <= min(count, first + longest)
        assert not any(chunks.table[first:last]) or not chunks.is_local(first, last)
        if rng.random() < 0.9:  # else the source failed: the sweep comes back to it
            fetched += chunks.table.count(0, first, last)
            chunks.table[first:last] = b"\x01" * (last - first)
    assert fetched == count
    assert blend.next_run(4) is None


class Wrong:
    """Proposes what the guest never touches; when told, what it touches a little later."""

    name = "wrong"

    def __init__(self, last: int) -> None:
        self.at = last
        self.right = False
        self.guest = 0

    def accessed(self, first: int, last: int, access: Access) -> None:
        self.guest = first

    def propose(self, longest: int, wanted: Wanted) -> Proposal | None:
        for chunk in range(self.guest + 100, self.guest + 400) if self.right else ():
            if wanted(chunk):
                return Proposal((chunk, chunk + 1), 800)
        while self.at > 0:
            self.at -= 1
            if wanted(self.at):
                return Proposal((self.at, self.at + 1), 8)
        return None


def test_a_losing_predictor_is_turned_down_and_comes_back() -> None:
    chunks = Chunks(20_000)
    wrong, good = Wrong(20_000), History(list(range(4000)))
    blend = Blend(chunks, [wrong, good])

    def turns(touched: Iterator[int], count: int) -> float:
        own = 0
        for _ in range(count):
            run = blend.next_run(1)
            assert run is not None
            own += run[0] >= 4000
            chunks.table[run[0]] = 1
            blend.accessed(touch := next(touched), touch + 1, "read")
        return own / count

    touched = iter(range(20_000))
    turns(touched, 600)
    late = turns(touched, 600)
    assert FLOOR / 2 < late < 0.15  # turned down, and still tried
    assert blend.report()["wrong"]["share"] < 0.3  # type: ignore[index]
    assert blend.report()["history"]["accuracy"] > 0.9  # type: ignore[index]
    wrong.right = True
    turns(touched, 2500)
    assert blend.report()["wrong"]["accuracy"] > 0.5  # type: ignore[index]
    assert blend.report()["wrong"]["share"] == 1.0  # type: ignore[index]


@given(st.lists(st.booleans(), max_size=2000))
def test_a_share_has_a_floor_and_a_ceiling(outcomes: list[bool]) -> None:
    score = Score()
    for touch, used in enumerate(outcomes):
        score.propose(touch, touch)
        if used:
            score.touched(touch)
        score.expire(touch + 1)
    assert score.used + score.wasted == score.proposed == len(outcomes)
    for rival in (0.0, 0.5, 1.0):
        assert FLOOR <= score.share(rival) <= 1.0
    for touch in range(300):
        score.propose(touch, 10**6)
        score.touched(touch)
    assert score.share(1.0) == 1.0


def test_a_proposal_used_before_it_is_due_is_not_wasted_later() -> None:
    score = Score()
    score.propose(5, 10)
    score.expire(9)
    score.touched(5)
    score.propose(5, 30)
    score.expire(20)  # the first one's due date has passed, the second's not
    assert (score.used, score.wasted) == (1, 0)
    score.expire(31)
    assert (score.used, score.wasted) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(60)), skip=st.sets(st.integers(0, 59), max_size=30))
def test_history_follows_any_recorded_order(order: list[int], skip: set[int]) -> None:
    chunks = Chunks(60)
    for chunk in skip:
        chunks.table[chunk] = 1
    blend = Blend(chunks, [History(list(order))])
    got: list[int] = []
    while (run := blend.next_run(1)) is not None:
        got += range(*run)
    assert got == [chunk for chunk in order if chunk not in skip]
    # Longer runs bring the same, each chunk not later than by one stretch of the order.
    chunks = Chunks(60)
    blend = Blend(chunks, [History(list(order))])
    got = []
    while (run := blend.next_run(4)) is not None:
        got += range(*run)
    assert sorted(got) == list(range(60))


def test_first_uses_leave_out_what_needs_no_fetch() -> None:
    size = 4 * CHUNK + 512
    records = (
        Record(0.0, "write", 0, CHUNK),  # whole
        Record(0.1, "read", 100, 512),
        Record(0.2, "write", CHUNK + 512, 512),  # partial: needs the source
        Record(0.3, "trim", 2 * CHUNK + 512, 512),  # partial trims are left alone
        Record(0.4, "read", 2 * CHUNK, CHUNK),
        Record(0.5, "write", 4 * CHUNK, 512),  # the disk's short last chunk, whole
        Record(0.6, "read", 3 * CHUNK, CHUNK + 512),
    )
    trace = Trace(TraceHeader(size, CHUNK, "t"), (records,))
    assert first_uses(trace, CHUNK) == [1, 2, 3]


def test_merged_histories_know_all_and_agree_where_they_do() -> None:
    assert merged([[1, 2, 3], [1, 9, 2, 3]]) == [1, 9, 2, 3]
    assert merged([]) == []


def test_history_ahead_follows_the_guest() -> None:
    ahead = HistoryAhead(list(range(0, 2000, 2)))
    assert ahead.propose(1, lambda _: True) is None
    ahead.accessed(1000, 1001, "read")
    assert ahead.propose(1, lambda _: True) == Proposal((1002, 1003), 130)
    ahead.accessed(11, 12, "read")  # not in the history: the guest's place stays
    assert ahead.propose(1, lambda _: True) == Proposal((1004, 1005), 132)


def drained(predictor: Predictor) -> list[Run]:
    found: list[Run] = []
    seen: set[int] = set()
    while (proposal := predictor.propose(64, lambda chunk: chunk not in seen)) is not None:
        found.append(proposal.run)
        seen.update(range(*proposal.run))
    return found


def test_sequential_streams_among_each_other() -> None:
    runs, proposed = Runs(), set[int]()
    for step in range(12):
        for base in (100, 5000, 90_000):
            runs.accessed(base + step, base + step + 1, "read")
        proposed.update(chunk for run in drained(runs) for chunk in range(*run))
    for base in (100, 5000, 90_000):
        assert set(range(base + 12, base + 40)) <= proposed
    assert all(any(base <= chunk < base + 100 for base in (100, 5000, 90_000)) for chunk in proposed)


@pytest.mark.parametrize("stride", [7, 64, -20])
def test_strided_runs(stride: int) -> None:
    runs = Runs()
    for step in range(4):
        runs.accessed(10_000 + step * stride, 10_001 + step * stride, "read")
    proposed = {chunk for run in drained(runs) for chunk in range(*run)}
    assert {10_000 + step * stride for step in range(4, 8)} <= proposed
    assert all((chunk - 10_000) % stride == 0 for chunk in proposed)


def test_no_run_where_there_is_none() -> None:
    runs, rng = Runs(), random.Random(5)
    proposed = 0
    for _ in range(500):
        chunk = rng.randrange(1 << 24)
        runs.accessed(chunk, chunk + 1, "read")
        proposed += sum(last - first for first, last in drained(runs))
    assert proposed < 100
    runs.accessed(5, 6, "write")
    assert not drained(runs)


def test_correlation_proposes_followers_and_theirs() -> None:
    table = learn([[1, 50, 7, 900, 3] * 3])
    correlation = Correlation(table)
    correlation.accessed(50, 51, "read")
    found = drained(correlation)
    assert found[0] == (7, 8)
    assert (900, 901) in found
    unknown = Correlation(table)
    unknown.accessed(12345, 12346, "read")
    assert not drained(unknown)


def test_locality_goes_where_the_guest_was_most() -> None:
    locality = Locality()
    locality.accessed(1000, 1001, "read")
    for chunk in (5000, 5003, 5009, 5013):
        locality.accessed(chunk, chunk + 1, "read")
    found = [chunk for run in drained(locality) for chunk in range(*run)]
    assert found[:4] == [5000, 5001, 5002, 5003]  # two touches in 256 KiB
    assert set(found[4:16]) == {*range(1000, 1004), *range(5008, 5016)}  # one touch
    assert found.index(1001) < found.index(5100)
    assert max(found.count(chunk) for chunk in found) == 1


# Small form of tests/bench/prefetch_bench.py, on a simulated clock


def boot(seed: int, count: int) -> list[int]:
    """A start of a system: files of some chunks at places that the disk fixes, in an order that varies a little."""
    disk = random.Random(99)
    files = [(disk.randrange(count - 40), disk.randrange(1, 12)) for _ in range(120)]
    rng = random.Random(seed)
    places = sorted(range(len(files)), key=lambda n: n + rng.uniform(0, 6))
    return [chunk for n in places for chunk in range(files[n][0], sum(files[n])) if rng.random() < 0.95]


def hit_rate(guest: Trace, traces: list[Trace] | None, background: bool = True) -> float:
    chunks = Chunks(guest.header.size_bytes // CHUNK)
    blend = None if traces is None else Blend(chunks, predictors_for(traces, CHUNK))
    return Simulation(chunks, blend, background=background).play(guest.records).hit_rate


def test_prefetch_pays_on_a_simulated_link() -> None:
    count = 16_384
    history, guest = trace_of(boot(1, count), count, 0.005), trace_of(boot(2, count), count, 0.005)
    none = hit_rate(guest, None, background=False)
    sweep = hit_rate(guest, None)
    online = hit_rate(guest, [])
    everything = hit_rate(guest, [history])
    other = hit_rate(guest, [trace_of(random.Random(4).sample(range(count), 2000), count)])
    told = f"none {none:.3f} sweep {sweep:.3f} online {online:.3f} history {everything:.3f} other's {other:.3f}"
    assert none < 0.2, told
    assert sweep < 0.5, told
    assert online > sweep + 0.2, told
    assert everything > 0.95, told
    assert other > sweep, told  # even a history of something else


# The real server


def test_a_server_follows_its_history_and_tells(spot: Path) -> None:
    content = make_source(spot / "source.raw", 256 * CHUNK, share=1.0)
    recorded = [200, 17, 90, 91, 92, 3]
    header = TraceHeader(len(content), CHUNK, "earlier")
    write_trace(spot / "t", header, [[Record(n * 0.1, "read", chunk * CHUNK, 512) for n, chunk in enumerate(recorded)]])
    config = config_for(
        spot,
        len(content),
        background=False,
        prefetch=PrefetchConfig(history=(str(spot / "t"), str(spot / "none")), sequential=False, locality=False),
    )
    server = StreamServer(config)
    try:
        # Its start waits for that only so long.
        until(lambda: not server.prefetch.report()["reading_history"], "the end of the reading")
        device = client_of(config)
        lane = device.lane()
        buffer = memoryview(bytearray(4096))
        lane.submit_read(5 * CHUNK, buffer)
        lane.reap()
        first = server.status()["statistics"]
        assert isinstance(first, dict)
        assert first["reads"] == {"hits": 0, "misses": 1, "hit_rate": 0.0}
        order: list[Run] = []
        real = server.store.claim

        def claim(first: int, last: int):  # type: ignore[no-untyped-def]
            found = real(first, last)
            if found is not None:
                order.append((found.first, found.last))
            return found

        server.store.claim = claim  # type: ignore[method-assign]
        server.fetcher.pause(False)
        until(lambda: server.status()["complete"], "hydration")
        assert [chunk for run in order for chunk in range(*run)][: len(recorded)] == recorded
        time.sleep(0.01)
        for chunk in recorded:
            lane.submit_read(chunk * CHUNK, buffer)
            lane.reap()
            assert bytes(buffer) == content[chunk * CHUNK :][:4096]
        lane.close()
        device.close()
        told = server.prefetch.report()
        assert not told["reading_history"]
        assert "there is no trace" in str(told["history_errors"])
        reads = server.fetcher.statistics.reads()
        assert (reads["hits"], reads["misses"]) == (len(recorded), 1)
    finally:
        server.stop()


TRACES = Path(__file__).with_name("traces")


@pytest.mark.parametrize(("load", "least_online", "least"), [("boot", 0.70, 0.98), ("app", 0.75, 0.97)])
def test_recorded_guests_on_a_simulated_link(load: str, least_online: float, least: float) -> None:
    """Judging traces of the benchmark: a later run of the same guest, with the run before as its history."""
    history, guest = (read_trace(TRACES / f"b{number}-{load}.trace") for number in (1, 2))
    sweep, online, everything = (hit_rate(guest, traces) for traces in (None, [], [history]))
    told = f"sweep {sweep:.4f} online {online:.4f} with history {everything:.4f}"
    assert online > max(sweep + 0.1, least_online), told
    assert everything > least, told
