"""GuestPort, line by line."""

from __future__ import annotations

import uuid

import pytest

from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import SIZE, ContractSuite
from whimbrel.errors import NotFound
from whimbrel.ports.guest import GuestFacts


class GuestContract(ContractSuite):
    """With and without an agent in the guest."""

    @pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
    def test_without_an_agent_nothing_is_known(self, harness: Harness, running: bool) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=running)
        assert harness.cloud.guest.facts(ref) == GuestFacts()
        assert harness.cloud.guest.quiesce(ref) is False

    def test_thaw_of_a_guest_that_is_not_frozen(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        for _ in range(2):
            harness.cloud.guest.thaw(ref)
        assert harness.cloud.compute.power(ref) == "running"

    def test_an_agent_tells_and_freezes(self, harness: Harness) -> None:
        needs(harness, Lack.AGENT)
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        harness.set_agent(ref, hostname="told-by-agent")
        facts = harness.cloud.guest.facts(ref)
        assert (facts.agent, facts.hostname) == (True, "told-by-agent")
        assert harness.cloud.guest.quiesce(ref) is True
        harness.cloud.guest.thaw(ref)
        harness.guest_write(ref, "vda", 0, b"thawed")
        assert harness.read_disk(ref, "vda")[:6] == b"thawed"

    def test_console_tail_is_short_enough(self, harness: Harness) -> None:
        ref = harness.make_vm([(SIZE, self.disk_format)], running=True)
        tail = harness.cloud.guest.console_tail(ref, max_bytes=16)
        assert tail is None or len(tail.encode()) <= 16 * 3, "one replacement character may stand for each byte"

    def test_a_vm_that_is_not_there_is_not_found(self, harness: Harness) -> None:
        ref = str(uuid.uuid4())
        with pytest.raises(NotFound):
            harness.cloud.guest.facts(ref)
        with pytest.raises(NotFound):
            harness.cloud.guest.console_tail(ref)
