"""From an endpoint to a device: one opener per kind of endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.dataplane.memorydevice import MemoryDevice, find_disk
from whimbrel.errors import Unsupported
from whimbrel.model.endpoint import FileEndpoint, Frozen, MemoryEndpoint, NbdEndpoint
from whimbrel.ports.block import BlockDevice

Opener = Callable[[Any], BlockDevice]
_openers: dict[str, Opener] = {}


def register_opener(kind: str, opener: Opener) -> None:
    """Let endpoints whose ``kind`` is this be opened by ``opener``; a later registration replaces an earlier one."""
    _openers[kind] = opener


def open_device(endpoint: Frozen) -> BlockDevice:
    """Open what an endpoint names; close the device after use.

    Raises Unsupported for a kind that nobody registered, and what the device's opener raises (NotFound,
    PermissionDenied, Unavailable, AuthFailed).
    """
    kind = str(getattr(endpoint, "kind", ""))
    if kind not in _openers:
        raise Unsupported(f"this program cannot open an endpoint of kind {kind!r}", known=sorted(_openers))
    return _openers[kind](endpoint)


def _open_file(endpoint: FileEndpoint) -> BlockDevice:
    return FileDevice(endpoint.path, writable=endpoint.writable)


def _open_memory(endpoint: MemoryEndpoint) -> BlockDevice:
    return MemoryDevice(find_disk(endpoint.key), writable=endpoint.writable)


def _open_nbd(endpoint: NbdEndpoint) -> BlockDevice:
    from whimbrel.nbd import open_nbd

    return open_nbd(endpoint)


register_opener("file", _open_file)
register_opener("memory", _open_memory)
register_opener("nbd", _open_nbd)
