"""What the guest tells without credentials: ``whimbrel.ports.guest.GuestPort`` through the QEMU guest agent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from drivers.libvirt import domain_xml, domains
from drivers.libvirt.connection import Connection
from whimbrel.ports.guest import GuestFacts

AGENT_TIMEOUT_S = 2
FREEZE_TIMEOUT_S = 20


class LibvirtGuest:
    """``GuestPort`` over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def facts(self, ref: str) -> GuestFacts:
        """Host name, OS and addresses from the agent; empty facts when none answers."""
        with self._connection.using(f"asking the agent of {ref}", vm=ref) as conn:
            return agent_facts(domains.get(conn, ref))

    def quiesce(self, ref: str) -> bool:
        """Freeze file systems; False when no agent does it. One that is frozen already counts as done."""
        with self._connection.using(f"freezing file systems of {ref}", vm=ref) as conn:
            domain = domains.get(conn, ref)
            if _ask(domain, "guest-ping") is None:
                return False
            if _ask(domain, "guest-fsfreeze-status") == "frozen":
                return True
            return _ask(domain, "guest-fsfreeze-freeze", timeout_s=FREEZE_TIMEOUT_S) is not None

    def thaw(self, ref: str) -> None:
        """Undo ``quiesce``; no agent, or nothing frozen, is fine."""
        with self._connection.using(f"thawing file systems of {ref}", vm=ref) as conn:
            _ask(domains.get(conn, ref), "guest-fsfreeze-thaw", timeout_s=FREEZE_TIMEOUT_S)

    def console_tail(self, ref: str, max_bytes: int = 4096) -> str | None:
        """The end of the serial port's log, where that is a file that this machine can read; else None."""
        with self._connection.using(f"looking for the console log of {ref}", vm=ref) as conn:
            path = domain_xml.console_log(domain_xml.parse(domains.get(conn, ref).XMLDesc()))
        if path is None:
            return None
        try:
            with Path(path).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - max_bytes))
                return log.read(max_bytes).decode("utf-8", "replace")
        except OSError:
            return None


def agent_facts(domain: Any) -> GuestFacts:
    """What the agent in a domain tells. Raises libvirtError only when the connection fails."""
    if _ask(domain, "guest-ping") is None:
        return GuestFacts()
    host = _ask(domain, "guest-get-host-name") or {}
    system = _ask(domain, "guest-get-osinfo") or {}
    interfaces = _ask(domain, "guest-network-get-interfaces") or []
    addresses = [
        address["ip-address"]
        for interface in interfaces
        for address in interface.get("ip-addresses", [])
        if interface.get("name") != "lo" and address.get("ip-address")
    ]
    return GuestFacts(
        agent=True,
        hostname=host.get("host-name"),
        os=system.get("pretty-name") or system.get("name"),
        addresses=tuple(addresses),
    )


def _ask(domain: Any, command: str, *, timeout_s: int = AGENT_TIMEOUT_S) -> Any | None:
    """The agent's ``return`` (``{}`` is a good answer); None when there is no agent or it does not answer in time."""
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), timeout_s, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_NO_DOMAIN}:
            raise
        return None
    return json.loads(answer).get("return")
