"""An opener as a driver lends it to a streaming server: here RBD images are files of a directory."""

from __future__ import annotations

from pathlib import Path

from whimbrel.dataplane import FileDevice
from whimbrel.model.endpoint import RbdEndpoint
from whimbrel.ports.block import BlockDevice


def open_file(endpoint: RbdEndpoint) -> BlockDevice:
    """The file ``image`` in the directory ``pool``."""
    return FileDevice(str(Path(endpoint.pool) / endpoint.image), writable=endpoint.writable)
