"""An agent in a real guest, over libvirt's channel: what it tells, freezing, and one that has stopped answering."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.ports.guest import GuestFacts

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SIZE = 1 << 20


def _heard(console: Path, command: str, times: int) -> bool:
    """Whether the agent was told ``command`` so often; its console comes a moment after its answer."""
    deadline = time.monotonic() + 20
    while console.read_text().count(command) < times and time.monotonic() < deadline:
        time.sleep(0.1)
    return console.read_text().count(command) == times


def test_what_the_agent_tells_and_does(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "raw")], running=True)
    harness.set_agent(ref, hostname="shop-db")
    guest = harness.cloud.guest
    told = guest.facts(ref)
    assert told == GuestFacts(
        agent=True, hostname="shop-db", os="Lab GNU/Busybox 1", addresses=("192.0.2.7", "2001:db8::7")
    )
    facts = harness.cloud.source_facts(ref)
    assert (facts.agent_configured, facts.agent_answers) == (True, True)
    assert (facts.hostname, facts.guest_os) == ("shop-db", "Lab GNU/Busybox 1")
    console = harness.work / "agent-console.log"
    assert [guest.quiesce(ref), guest.quiesce(ref)] == [True, True]
    assert _heard(console, "guest-fsfreeze-freeze", 1), "a guest that is frozen is not frozen again"
    for _ in range(2):
        guest.thaw(ref)
    assert _heard(console, "guest-fsfreeze-thaw", 2)
    assert guest.quiesce(ref) is True
    assert _heard(console, "guest-fsfreeze-freeze", 2)
    guest.thaw(ref)
    assert "AGENT UP" in (guest.console_tail(ref, 1 << 16) or "")


def test_an_agent_that_hangs_counts_as_none(harness: LibvirtHarness) -> None:
    ref = harness.make_vm([(SIZE, "raw")], running=True)
    harness.set_agent(ref, hostname="mute", mute=True)
    assert harness.cloud.guest.facts(ref) == GuestFacts()
    assert harness.cloud.guest.quiesce(ref) is False
    facts = harness.cloud.source_facts(ref)
    assert (facts.agent_configured, facts.agent_answers) == (True, False)
    assert harness.cloud.compute.power(ref) == "running"
