"""What the driver writes into metadata and names, so that any worker finds what another one made.

Values of metadata hold 255 characters, so a longer text is cut in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MIGRATION = "whimbrel_migration"
"""On servers, volumes and snapshots: who made it. On servers it goes away when they are handed over."""
REF = "whimbrel_ref"
"""On servers: the ref under which the VM was announced before the server existed."""
SIZE = "whimbrel_size_bytes"
"""On volumes: the real size that was asked for; Cinder counts in whole GiB."""
PLAN = "whimbrel_plan_"
"""On the first volume of a VM that is announced: pieces of its plan."""
MOVER = "whimbrel_mover"
"""On mover servers: key of the session that they are for."""
MOVER_NAME = "whimbrel-mover-"
"""How names of mover servers and of their ports begin."""
READS = "whimbrel_reads"
"""On volumes made from a snapshot for a mover server: key of the point in time."""
READS_VOLUME = "whimbrel_reads_volume"
"""On the same: the volume whose content it is."""
PIECE_CHARS = 250
OURS = "whimbrel_"
MADE_BY_US = re.compile(r"-([0-9a-f]{10})$")
"""How ``whimbrel.model.naming.volume_name`` ends names."""
GIB = 1 << 30


def pieces(prefix: str, text: str) -> dict[str, str]:
    """Text as metadata."""
    count = -(-len(text) // PIECE_CHARS)
    return {f"{prefix}{number:02d}": text[number * PIECE_CHARS : (number + 1) * PIECE_CHARS] for number in range(count)}


def joined(prefix: str, metadata: Mapping[str, str]) -> str:
    """The text again; empty when there is none."""
    return "".join(metadata[key] for key in sorted(metadata) if key.startswith(prefix))


def migration_of(name: str) -> str | None:
    """The migration whose id a name ends with."""
    found = MADE_BY_US.search(name or "")
    return found.group(1) if found else None


def whole_gib(size_bytes: int) -> int:
    """Size in GiB that Cinder must be asked for."""
    return max(1, -(-size_bytes // GIB))


def size_of(volume: Any) -> int:
    """Size in bytes: what we asked for, unless the volume has grown since; else Cinder's, in whole GiB."""
    asked = str((volume.metadata or {}).get(SIZE, ""))
    gib = int(volume.size or 0)
    return int(asked) if asked.isdigit() and whole_gib(int(asked)) == gib else gib * GIB
