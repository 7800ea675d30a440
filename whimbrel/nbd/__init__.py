"""A pure-Python NBD client: what speaks the protocol of network block devices, and nothing else.

``protocol`` holds numbers and layouts, ``fault`` the meaning of refusals and lies, ``transport`` and ``tls`` the byte
stream, ``negotiate`` the handshake, ``request``, ``reply`` and ``lane`` the transmission, ``status`` block status as
extents, ``device`` the whole as a ``BlockDevice``. Copying, pacing, digests and servers live elsewhere.
"""

from __future__ import annotations

from whimbrel.nbd.device import NbdDevice, open_nbd
from whimbrel.nbd.lane import NbdLane
from whimbrel.nbd.negotiate import list_exports

__all__ = ["NbdDevice", "NbdLane", "list_exports", "open_nbd"]
