"""Moves bytes of disks between devices: copies extents, keeps digests, verifies, and finds changes by hash.

Works only on whimbrel.ports.block; knows nothing of clouds, guests or Temporal. docs/dataplane.md explains the formats.
"""

from whimbrel.dataplane.copier import CopyResult, CopySettings, CopyStopped, copy
from whimbrel.dataplane.devices import open_device, register_opener
from whimbrel.dataplane.disowning import disown
from whimbrel.dataplane.filedevice import FileDevice
from whimbrel.dataplane.governor import Governor, Priority
from whimbrel.dataplane.hashscan import changed_by_hash, sample_unchanged
from whimbrel.dataplane.header import ManifestCorrupt
from whimbrel.dataplane.lastdelta import LastDelta
from whimbrel.dataplane.manifest import Manifest, discard_manifest
from whimbrel.dataplane.memorydevice import MemoryDevice, MemoryDisk
from whimbrel.dataplane.progress import CopyProgress
from whimbrel.dataplane.scan import ScanProgress, ScanStopped
from whimbrel.dataplane.verify import CompareResult, VerifyResult, compare, verify_round

__all__ = [
    "CompareResult",
    "CopyProgress",
    "CopyResult",
    "CopySettings",
    "CopyStopped",
    "FileDevice",
    "Governor",
    "LastDelta",
    "Manifest",
    "ManifestCorrupt",
    "MemoryDevice",
    "MemoryDisk",
    "Priority",
    "ScanProgress",
    "ScanStopped",
    "VerifyResult",
    "changed_by_hash",
    "compare",
    "copy",
    "discard_manifest",
    "disown",
    "open_device",
    "register_opener",
    "sample_unchanged",
    "verify_round",
]
