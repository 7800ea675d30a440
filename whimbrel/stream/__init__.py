"""Streaming: an NBD server whose disk is here already where it was asked for, and still at the source elsewhere.

``store`` holds the rules by which guest and fetches share the target, ``chunkmap`` the durable memory of what is
local, ``fetcher`` brings what is missing in an order that ``hydration`` gives. ``handshake``, ``connection`` and
``listener`` speak NBD, ``server`` puts all together, ``control`` and ``process`` make it a program:
``python -m whimbrel.stream CONFIG.json``.
"""

from __future__ import annotations

from whimbrel.stream.config import ListenAt, ServerTls, StreamConfig
from whimbrel.stream.control import ask
from whimbrel.stream.launch import launch, stop
from whimbrel.stream.server import StreamServer

__all__ = ["ListenAt", "ServerTls", "StreamConfig", "StreamServer", "ask", "launch", "stop"]
