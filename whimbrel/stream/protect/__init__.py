"""Protection: what the guest writes at the target also reaches a shadow at the source, so a rollback loses nothing.

``config`` says how. The shadow is a writable overlay on the streamed disk, served where the source is: reading it gives
the source's bytes and, over them, what the guest wrote since.
"""

from __future__ import annotations

from whimbrel.stream.protect.config import ProtectConfig

__all__ = ["ProtectConfig"]
