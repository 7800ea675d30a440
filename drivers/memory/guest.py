"""The guests of the in-memory cloud, as far as a cloud can ask them."""

from __future__ import annotations

from drivers.memory.calls import CallLog, port_call
from drivers.memory.state import CloudState
from whimbrel.model.vm import Power
from whimbrel.ports.guest import GuestFacts

PORT = "guest"


class MemoryGuest:
    """GuestPort on a cloud's state."""

    def __init__(self, state: CloudState) -> None:
        self._state = state

    @property
    def log(self) -> CallLog:
        """The cloud's call log."""
        return self._state.log

    @port_call(PORT)
    def facts(self, ref: str) -> GuestFacts:
        """What the agent tells; nothing is known of a guest without one or that does not run."""
        with self._state.lock:
            vm = self._state.vm(ref)
            guest = vm.guest
            if vm.power is not Power.RUNNING or not guest.agent:
                return GuestFacts()
            return GuestFacts(agent=True, hostname=guest.hostname, os=guest.os, addresses=guest.addresses)

    @port_call(PORT)
    def quiesce(self, ref: str) -> bool:
        """Freeze file systems; False without an agent or when the guest does not run."""
        with self._state.lock:
            vm = self._state.vm(ref)
            vm.guest.quiesced = vm.power is Power.RUNNING and vm.guest.agent
            return vm.guest.quiesced

    @port_call(PORT)
    def thaw(self, ref: str) -> None:
        """Undo quiesce."""
        with self._state.lock:
            self._state.vm(ref).guest.quiesced = False

    @port_call(PORT)
    def console_tail(self, ref: str, max_bytes: int = 4096) -> str | None:
        """The end of the console's log; None where the cloud keeps none."""
        with self._state.lock:
            vm = self._state.vm(ref)
            if not self._state.capabilities.console:
                return None
            return vm.guest.console.encode()[-max_bytes:].decode(errors="replace") if max_bytes > 0 else ""
