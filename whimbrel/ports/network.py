"""The networks of a cloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whimbrel.model.facts import NetworkFacts


class NetworkPort(Protocol):
    """Every method may raise Unavailable, AuthFailed, PermissionDenied, Throttled."""

    def networks(self) -> Sequence[NetworkFacts]:
        """All networks the credentials can use."""
        ...

    def mac_owners(self, macs: Sequence[str]) -> dict[str, str]:
        """For those of ``macs`` that are in use: the name of the VM or port that has it."""
        ...

    def ensure_port(self, network: str, mac: str, address: str | None, *, migration: str) -> str:
        """Reserve MAC and address where the cloud needs that before the VM exists; returns the port's id, or ``""``."""
        ...

    def ensure_port_absent(self, port: str, *, migration: str) -> None:
        """Give a reserved port back; one that is not there is fine."""
        ...
