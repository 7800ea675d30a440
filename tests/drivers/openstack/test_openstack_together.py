"""One look for all who ask at the same moment, none older than its question."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.openstack.together import Together
from whimbrel.errors import Unavailable


def test_who_asks_during_a_look_waits_for_the_next_one() -> None:
    """The look under way may have begun before what is asked for was there."""
    together, begun, go_on = Together(), threading.Event(), threading.Event()
    number = itertools.count(1)

    def slow() -> int:
        mine = next(number)
        begun.set()
        assert go_on.wait(60)
        return mine

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together.look, "servers", slow)
        assert begun.wait(60)
        others = [pool.submit(together.look, "servers", slow) for _ in range(4)]
        while together._waiting["servers"] < 4:
            time.sleep(0.001)
        assert together.look("volumes", lambda: "another thing") == "another thing"
        go_on.set()
        assert first.result(60) == 1
        assert {one.result(60) for one in others} == {2}, "four questions, one look"
    assert together.look("servers", lambda: 3) == 3
    assert together._seen == {}


def test_a_look_that_fails_fails_for_one_only() -> None:
    together, begun, go_on = Together(), threading.Event(), threading.Event()

    def broken() -> str:
        begun.set()
        assert go_on.wait(60)
        raise Unavailable("the line is cut")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together.look, "servers", broken)
        assert begun.wait(60)
        others = [pool.submit(together.look, "servers", lambda: "seen") for _ in range(2)]
        while together._waiting["servers"] < 2:
            time.sleep(0.001)
        go_on.set()
        with pytest.raises(Unavailable):
            first.result(60)
        assert [one.result(60) for one in others] == ["seen"] * 2


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 0.002), st.floats(0, 0.002)), min_size=1, max_size=6), min_size=2, max_size=5
    )
)
def test_no_answer_is_older_than_its_question(threads: list[list[tuple[float, float]]]) -> None:
    """Threads that ask again and again, looks that last: what is seen was true after the question was put."""
    together, clock, looks = Together(), itertools.count(1), itertools.count(1)

    def thread(steps: list[tuple[float, float]]) -> None:
        for rest_s, look_s in steps:

            def look(look_s: float = look_s) -> int:
                next(looks)
                began = next(clock)
                time.sleep(look_s)
                return began

            asked = next(clock)
            assert together.look("servers", look) > asked
            time.sleep(rest_s)

    with ThreadPoolExecutor(len(threads)) as pool:
        for done in [pool.submit(thread, steps) for steps in threads]:
            done.result(100)
    assert together._seen == {}
    assert together._under_way == set()
