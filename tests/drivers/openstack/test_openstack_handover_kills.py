"""The worker dies between any two calls that change something in a cloud or in the pool, in every act of a handover.

Killed after a call is killed before the next one: nothing of the attempt happens between them. Each act is killed in a
test of its own, so that one takes minutes: what led to it is done whole, the act dies, and then it is done again, or
given up for the way back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from labs.openstack import OpenStackLab
from tests.contract.api_calls import Calls, Killed
from tests.contract.openstack_harness import patiently
from tests.contract.openstack_sharing import OpenStackSharing
from tests.drivers.openstack.handing import Handing, go

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(900)]
SAMPLE = 5


class Death(NamedTuple):
    """An act that is killed: what comes before it, and whether it is given up then."""

    before: tuple[str, ...]
    act: str
    gives_up: bool


THERE = ("fence", "release", "adopt", "define", "start")
DEATHS = {
    **{
        f"{act}-{how}": Death(THERE[:number], act, how == "given-up")
        for number, act in enumerate(THERE)
        for how in ("repeated", "given-up")
    },
    "remove": Death(THERE, "remove", False),
    "remove-announced": Death(THERE[:-1], "remove", False),
    "abandon": Death(("fence", "release", "adopt"), "abandon", False),
    "abandon-half-announced": Death(("fence", "release", "adopt", "define", "remove"), "abandon", False),
    "reclaim": Death(("fence", "release", "adopt", "abandon"), "reclaim", False),
    "reclaim-at-once": Death(("fence", "release"), "reclaim", False),
    "restore": Death(("fence",), "restore", False),
}


@pytest.fixture
def sharing(openstack_clouds: OpenStackLab) -> Iterator[OpenStackSharing]:
    made = OpenStackSharing(openstack_clouds)
    yield made
    made.end()


def lead_to(handing: Handing, death: Death) -> None:
    go([getattr(handing, act) for act in death.before])


def count(handing: Handing, death: Death) -> list[str]:
    """All calls of the act, undisturbed; then home."""
    lead_to(handing, death)
    with Calls().watching(*handing.clouds.values()) as calls:
        patiently(getattr(handing, death.act))
    go(handing.back())
    handing.at_home()
    return calls.seen


def die(handing: Handing, death: Death, at: int) -> str:
    """Killed after the call of this number; the call."""
    handing.begin()
    lead_to(handing, death)
    act = getattr(handing, death.act)
    with Calls(at, after=True).watching(*handing.clouds.values()) as calls:
        with pytest.raises(Killed):
            patiently(act)
        handing.check()
    if not death.gives_up:
        patiently(act)
        handing.check()
    go(handing.back())
    handing.at_home()
    return calls.seen[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEATHS)
def test_killed_after_every_call_of(sharing: OpenStackSharing, name: str) -> None:
    every_kill(Handing(sharing), name)


def every_kill(handing: Handing, name: str) -> None:
    death = DEATHS[name]
    seen = count(handing, death)
    assert seen, f"{death.act} changes nothing"
    for at in range(1, len(seen) + 1):
        began = time.monotonic()
        print(f"{name} {at}/{len(seen)} {die(handing, death, at)} {time.monotonic() - began:.1f} s")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("how", ["repeated", "given-up"])
def test_killed_after_every_call_of_an_adoption_by_transfer(openstack_clouds: OpenStackLab, how: str) -> None:
    """The administrator's entry has a project of its own: a volume may be there, be offered, or have arrived."""
    sharing = OpenStackSharing(openstack_clouds, admin_apart=True)
    try:
        every_kill(Handing(sharing), f"adopt-{how}")
    finally:
        sharing.end()


@pytest.mark.slow
def test_killed_after_every_call_of_an_abandonment_by_transfer(openstack_clouds: OpenStackLab) -> None:
    """Of volumes that have not left the administrator's project: the adoption died before their offer was taken."""
    sharing = OpenStackSharing(openstack_clouds, admin_apart=True)
    try:
        handing = Handing(sharing)
        at = offered_at(handing)
        for kill in range(1, 99):
            handing.begin()
            go([handing.fence, handing.release])
            with Calls(at, after=True).watching(*handing.clouds.values()), pytest.raises(Killed):
                patiently(handing.adopt)
            with Calls(kill, after=True).watching(*handing.clouds.values()) as calls:
                try:
                    patiently(handing.abandon)
                except Killed:
                    handing.check()
            go(handing.back())
            handing.at_home()
            print(f"abandon by transfer {kill} {calls.seen[-1]}")  # noqa: T201
            if len(calls.seen) < kill:
                break
        assert kill > 2
    finally:
        sharing.end()


def offered_at(handing: Handing) -> int:
    """The call of an adoption by which a volume is offered."""
    go([handing.fence, handing.release])
    with Calls().watching(*handing.clouds.values()) as calls:
        patiently(handing.adopt)
    go(handing.back())
    handing.at_home()
    (at, *_) = [number for number, call in enumerate(calls.seen, 1) if call.endswith("volume-transfers transfer")]
    return at


def test_killed_here_and_there(sharing: OpenStackSharing) -> None:
    """A few of the above: one call of each act that unmanages, manages or renames."""
    chance = random.Random(5)
    handing = Handing(sharing)
    for name in ("release-repeated", "adopt-repeated", "define-given-up", "abandon", "reclaim")[:SAMPLE]:
        at = chance.randint(1, len(count(handing, DEATHS[name])) - 1)
        print(f"{name} {at} {die(handing, DEATHS[name], at)}")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_killed_after_every_call_of_the_confirmation(sharing: OpenStackSharing, part: int) -> None:
    """Each with a VM of its own: it does not come back."""
    at, whole = part, False
    while not whole:
        at += 1
        handing = Handing(sharing, disks=1 + part % 2)
        go(handing.forth())
        with Calls(at, after=True).watching(*handing.clouds.values()) as calls:
            try:
                go(handing.confirm())
                whole = True
            except Killed:
                handing.check()
        go(handing.confirm())
        handing.moved()
        print(f"confirmation {at} {calls.seen[-1]}")  # noqa: T201
        at += 3


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
