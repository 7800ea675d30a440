"""The networks of the in-memory cloud."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.memory.calls import CallLog, port_call
from drivers.memory.state import CloudState
from whimbrel.errors import Conflict, NotFound
from whimbrel.model.facts import NetworkFacts

PORT = "networks"


class MemoryNetworks:
    """NetworkPort on a cloud's state; every MAC and address is reserved as a port before the VM exists."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def networks(self) -> Sequence[NetworkFacts]:
        """All networks."""
        with self._state.lock:
            return list(self._state.networks.values())

    @port_call(PORT)
    def mac_owners(self, macs: Sequence[str]) -> dict[str, str]:
        """Who has each of ``macs``, spelled as asked; compared without regard to case."""
        owners = all_macs(self._state)
        return {mac: owners[mac.lower()] for mac in macs if mac.lower() in owners}

    @port_call(PORT)
    def ensure_port(self, network: str, mac: str, address: str | None, *, migration: str) -> str:
        """Reserve; the same network, MAC and migration is the same port. Raises NotFound, Conflict."""
        with self._state.lock:
            if network not in self._state.networks:
                raise NotFound(f"no network {network} on cloud {self._state.name}", network=network)
            wanted = (network, mac.lower(), migration)
            for port, reserved in self._state.ports.items():
                if reserved == wanted:
                    return port
                if reserved[:2] == wanted[:2]:
                    raise Conflict(f"MAC {mac} on network {network} is reserved as port {port}", port=port)
            port = f"port-{self._state.next_serial()}"
            self._state.ports[port] = wanted
            return port

    @port_call(PORT)
    def ensure_port_absent(self, port: str, *, migration: str) -> None:
        """Give back. Raises Conflict for a port of another migration."""
        with self._state.lock:
            reserved = self._state.ports.get(port)
            if reserved is None:
                return
            if reserved[2] != migration:
                raise Conflict(f"port {port} was not reserved by migration {migration}: it is left alone", port=port)
            del self._state.ports[port]


def all_macs(state: CloudState) -> dict[str, str]:
    """MAC in lower case -> name of the VM that has it, or id of the port that reserves it."""
    with state.lock:
        owners = {mac: port for port, (_, mac, _) in state.ports.items()}
        owners.update({nic.mac.lower(): vm.spec.name for vm in state.vms.values() for nic in vm.spec.nics})
        return owners
