"""Moves bytes of disks between devices: copies extents, keeps digests, verifies, and finds changes by hash.

Works only on whimbrel.ports.block; knows nothing of clouds, guests or Temporal. docs/dataplane.md explains the formats.
"""

from whimbrel.dataplane.copier import CopyResult, CopySettings, CopyStopped, copy
from whimbrel.dataplane.devices import open_device, register_opener
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.dataplane.header import ManifestCorrupt
from whimbrel.dataplane.manifest import Manifest, discard_manifest
from whimbrel.dataplane.memorydevice import MemoryDevice, MemoryDisk
from whimbrel.dataplane.progress import CopyProgress

__all__ = [
    "CopyProgress",
    "CopyResult",
    "CopySettings",
    "CopyStopped",
    "FileDevice",
    "Governor",
    "Manifest",
    "ManifestCorrupt",
    "MemoryDevice",
    "MemoryDisk",
    "Priority",
    "copy",
    "discard_manifest",
    "open_device",
    "register_opener",
]
