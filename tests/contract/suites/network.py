"""NetworkPort, line by line."""

from __future__ import annotations

from tests.contract.harness import Harness
from tests.contract.suites.suite import SIZE, ContractSuite

FREE_MAC = "52:54:00:fa:ce:01"


class NetworkContract(ContractSuite):
    """Networks, MACs, reserved ports."""

    def test_networks_show_the_harness_network(self, harness: Harness) -> None:
        networks = {network.name: network for network in harness.cloud.networks.networks()}
        assert networks[harness.network].active

    def test_mac_owners_names_the_vm_in_any_spelling(self, harness: Harness) -> None:
        vm = harness.cloud.compute.inspect(harness.make_vm([(SIZE, self.disk_format)]))
        mac = vm.nics[0].mac
        for spelling in (mac.lower(), mac.upper()):
            owners = harness.cloud.networks.mac_owners([FREE_MAC, spelling])
            assert list(owners.values()) == [vm.name]
            assert [owner.lower() for owner in owners] == [mac.lower()]

    def test_free_macs_have_no_owner(self, harness: Harness) -> None:
        assert harness.cloud.networks.mac_owners([FREE_MAC]) == {}
        assert harness.cloud.networks.mac_owners([]) == {}

    def test_a_port_is_reserved_once_and_given_back(self, harness: Harness, migration: str) -> None:
        networks = harness.cloud.networks
        first = networks.ensure_port(harness.network, FREE_MAC, None, migration=migration)
        assert networks.ensure_port(harness.network, FREE_MAC, None, migration=migration) == first
        assert harness.fresh_cloud().networks.ensure_port(harness.network, FREE_MAC, None, migration=migration) == first
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.networks.ensure_port_absent(first, migration=migration)
        assert networks.mac_owners([FREE_MAC]) == {}

    def test_absence_of_a_port_that_never_was_is_fine(self, harness: Harness, migration: str) -> None:
        harness.cloud.networks.ensure_port_absent("", migration=migration)
        harness.cloud.networks.ensure_port_absent("00000000-0000-4000-8000-000000000000", migration=migration)
        assert harness.cloud.networks.mac_owners([FREE_MAC]) == {}
