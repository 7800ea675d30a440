"""TCP ports of loopback for servers that must be told theirs before they start, and find it free when they start again.

They lie below the range from which the kernel takes ports for everybody who names none (ip_local_port_range), so no
connection can have taken one meanwhile, nor connect to itself there while the server is down. Whoever is lent one holds
an abstract unix socket of the port's number, which goes with the process: two test runs on one machine never get the
same port.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FIRST: Final = 20_000
CLAIM: Final = "whimbrel-port"
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: list[socket.socket] = []


def lend_port() -> int:
    """A free port that nobody else is lent while this process lives. Raises RuntimeError if none is left."""
    ports = _ports()
    for port in random.sample(ports, len(ports)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0{CLAIM}-{port}")
            with socket.socket() as probe:
                probe.bind(("0.0.0.0", port))
        except OSError:
            claim.close()
            continue
        _held.append(claim)
        return port
    raise RuntimeError(f"no port of {ports} is free")


def _ports() -> Sequence[int]:
    return range(FIRST, int(_RANGE.read_text(encoding="ascii").split()[0]))
