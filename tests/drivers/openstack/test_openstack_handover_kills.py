"""The worker dies at every single call that changes something in a cloud or in the pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from labs.openstack import OpenStackLab
from tests.contract.api_calls import Calls, Killed
from tests.contract.openstack_harness import patiently
from tests.contract.openstack_sharing import OpenStackSharing
from tests.drivers.openstack.handing import Act, Handing, go

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(3000)]
SAMPLE = 5


@pytest.fixture
def sharing(openstack_clouds: OpenStackLab) -> Iterator[OpenStackSharing]:
    made = OpenStackSharing(openstack_clouds)
    yield made
    made.end()


def play(handing: Handing, calls: Calls, parts: list[Callable[[], list[Act]]], *, turn_back: bool) -> None:
    """The acts of all parts; the one that is killed is tried again, or given up for the way back."""
    for part in parts:
        for act in part():
            try:
                patiently(act)
            except Killed:
                handing.check()
                if turn_back and part == handing.forth:
                    go(handing.back())
                    return
                patiently(act)
            handing.check()


def count(handing: Handing, parts: list[Callable[[], list[Act]]]) -> list[str]:
    """All calls of an undisturbed run."""
    with Calls().watching(*handing.clouds.values()) as calls:
        play(handing, calls, parts, turn_back=False)
    return calls.seen


def round_trips(handing: Handing, moments: int | None) -> None:
    parts = [handing.forth, handing.back]
    seen = count(handing, parts)
    handing.at_home()
    print(f"{len(seen)} calls:", *seen, sep="\n  ")  # noqa: T201 - for whoever reads a failure
    every = [(at, after, back) for at in range(1, len(seen) + 1) for after in (False, True) for back in (False, True)]
    for at, after, back in random.Random(5).sample(every, moments) if moments else every:
        handing.begin()
        with Calls(at, after=after).watching(*handing.clouds.values()) as calls:
            play(handing, calls, parts, turn_back=back)
        assert len(calls.seen) >= at, "nothing was killed"
        print(f"killed at {at} {'after' if after else 'before'} {calls.seen[at - 1]}, {back=}")  # noqa: T201
        handing.at_home()


def test_killed_on_the_way_there_and_back(sharing: OpenStackSharing) -> None:
    round_trips(Handing(sharing), SAMPLE)


@pytest.mark.slow
def test_killed_at_every_call_there_and_back(sharing: OpenStackSharing) -> None:
    round_trips(Handing(sharing), None)


@pytest.mark.slow
def test_killed_at_every_call_of_the_confirmation(sharing: OpenStackSharing) -> None:
    handing = Handing(sharing)
    go(handing.forth())
    seen = count(handing, [handing.confirm])
    handing.moved()
    print(f"{len(seen)} calls:", *seen, sep="\n  ")  # noqa: T201
    for at in range(1, len(seen) + 1):
        for after in (False, True):
            handing = Handing(sharing)
            go(handing.forth())
            with Calls(at, after=after).watching(*handing.clouds.values()) as calls:
                play(handing, calls, [handing.confirm], turn_back=False)
            assert len(calls.seen) >= at
            handing.moved()


def test_the_check_sees_an_image_that_two_clouds_manage(sharing: OpenStackSharing) -> None:
    """The check can fail: the image is found by its old name beside the new one."""
    handing = Handing(sharing, disks=1)
    go(handing.forth())
    handing.check()
    ((own, image),) = handing.ids.items()
    sharing.lead_to(image, own)
    with pytest.raises(AssertionError, match="managed by"):
        handing.check()
    go(handing.back())  # and it is put in order on the way
    handing.at_home()
