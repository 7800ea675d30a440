"""Archives that a kernel unpacks as its first file system: byte for byte the same for the same entries."""

from __future__ import annotations

from collections.abc import Sequence

Entry = tuple[str, int, bytes]
"""Name, mode and content; directories have no content."""


def archive(entries: Sequence[Entry]) -> bytes:
    """Return a cpio archive in the "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format)."""
    output = bytearray()
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        links = 1
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        output += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        output += b"\0" * (-len(output) % 4)
        output += content
        output += b"\0" * (-len(output) % 4)
    return bytes(output)
