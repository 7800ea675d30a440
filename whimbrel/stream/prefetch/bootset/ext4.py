"""Reads ext4 (and ext3 that was converted): inodes, extents, directories, links.

Source of the layout: the kernel's Documentation/filesystems/ext4. The disk is somebody else's: all counts are bounded,
and what makes no sense is Unreadable. Checksums are not looked at, for what is wrong here only costs a fetch.
"""

from __future__ import annotations

import itertools
import struct
from typing import Final

from whimbrel.stream.prefetch.bootset.filesystem import Kind, Node, Piece
from whimbrel.stream.prefetch.bootset.view import LONGEST_READ_BYTES, Spent, Unreadable, View

SUPERBLOCK_AT: Final = 1024
MAGIC: Final = 0xEF53
META_BG, EXTENTS, WIDE, ENCRYPTED_ROOT = 0x10, 0x40, 0x80, 0x10000
SPARSE_SUPER: Final = 0x1
EXTENT_FLAG: Final = 0x80000
EXTENT_MAGIC: Final = 0xF30A
UNWRITTEN: Final = 32768
DEEPEST: Final = 5
PIECES_MOST: Final = 4096
LEAF_COST: Final = 16
"""What a block of extents counts as, so that a tree whose branches are all the same block ends."""
DIRECTORY_MOST_BYTES: Final = 2 << 20
LINK_MOST_BYTES: Final = 4096
KEPT_MOST: Final = 400_000
"""Names and pieces of all files together: a disk may be made so that a few blocks look like any number of them."""
ROOT: Final = 2
GROUPS_MOST: Final = 512
TABLE_AHEAD: Final = 32
KINDS: Final[dict[int, Kind]] = {0x8: "file", 0x4: "directory", 0xA: "link"}
_EXTENT_HEAD: Final = struct.Struct("<HHHH4x")
_EXTENT_LEAF: Final = struct.Struct("<IHHI")
_EXTENT_INDEX: Final = struct.Struct("<4xIH2x")
_ENTRY: Final = struct.Struct("<IHB")


class Ext4:
    """One file system; see FileSystem."""

    root = ROOT

    def __init__(self, view: View, start: int) -> None:
        """``start``: where it begins on the disk. Raises Absent, Unreadable if there is none that can be read."""
        self._view = view
        self._start = start
        raw = view.read(start + SUPERBLOCK_AT, 1024)
        self._inodes, blocks, self._first_block, shift = (
            *struct.unpack_from("<II", raw, 0),
            *struct.unpack_from("<II", raw, 20),
        )
        self._blocks_per_group, self._inodes_per_group = struct.unpack_from("<I4xI", raw, 32)
        magic, revision, self._inode_bytes = (
            *struct.unpack_from("<H", raw, 56),
            *struct.unpack_from("<I8xH", raw, 76),
        )
        incompatible, self._readonly_features = struct.unpack_from("<II", raw, 96)
        self._journal = struct.unpack_from("<I", raw, 224)[0]
        descriptor = struct.unpack_from("<H", raw, 254)[0]
        self._first_meta = struct.unpack_from("<I", raw, 260)[0] if incompatible & META_BG else 1 << 32
        if magic != MAGIC or revision < 1 or shift > 6 or not incompatible & EXTENTS or incompatible & ENCRYPTED_ROOT:
            raise Unreadable("no ext4")
        self._block = 1024 << shift
        self._descriptor = max(descriptor, 32) if incompatible & WIDE else 32
        if incompatible & WIDE:
            blocks += struct.unpack_from("<I", raw, 336)[0] << 32
        self._blocks = blocks
        if not (
            256 <= self._blocks_per_group <= 8 * self._block
            and 0 < self._inodes_per_group <= 8 * self._block
            and self._blocks * self._block <= view.size_bytes - start
            and 128 <= self._inode_bytes <= self._block
            and self._descriptor <= self._block
        ):
            raise Unreadable("a strange ext4")
        self._kept = 0
        self._tables: set[int] = set()
        self._nodes: dict[int, tuple[Node, int, bytes]] = {}
        self._pieces: dict[int, list[Piece]] = {}
        self._entries: dict[int, dict[str, int]] = {}

    def node(self, number: int) -> Node:
        """See FileSystem."""
        return self._inode(number)[0]

    def link(self, number: int) -> str:
        """See FileSystem."""
        node, flags, block = self._inode(number)
        if node.kind != "link":
            raise Unreadable("no link")
        if not flags & EXTENT_FLAG and node.size_bytes < 60:
            return block[: node.size_bytes].decode("utf-8", "surrogateescape")
        if node.size_bytes > LINK_MOST_BYTES:
            raise Unreadable("a long link")
        return self.read(number, 0, node.size_bytes).decode("utf-8", "surrogateescape")

    def pieces(self, number: int) -> list[Piece]:
        """See FileSystem."""
        found = self._pieces.get(number)
        if found is None:
            node, flags, block = self._inode(number)
            if not flags & EXTENT_FLAG:
                raise Unreadable("a file without extents")
            found = []
            self._extents(block, None, found)
            found = [
                piece._replace(length=min(piece.length, node.size_bytes - piece.at))
                for piece in sorted(found)
                if piece.at < node.size_bytes
            ]
            if any(before.at + before.length > after.at for before, after in itertools.pairwise(found)):
                raise Unreadable("pieces that overlap")
            if any(piece.disk + piece.length > self._view.size_bytes for piece in found):
                raise Unreadable("pieces outside the disk")
            self._keep(len(found))
            self._pieces[number] = found
        return found

    def entries(self, number: int) -> dict[str, int]:
        """See FileSystem. An index is passed over: its blocks look like empty ones."""
        found = self._entries.get(number)
        if found is None:
            node = self.node(number)
            if node.kind != "directory" or node.size_bytes > DIRECTORY_MOST_BYTES:
                raise Unreadable("no directory")
            found = {}
            raw = self.read(number, 0, node.size_bytes)
            for block in range(0, len(raw) - 11, self._block):
                self._names(raw, block, min(block + self._block, len(raw)), found)
            self._keep(len(found))
            self._entries[number] = found
        return found

    def read(self, number: int, at: int, length: int) -> bytes:
        """See FileSystem."""
        length = min(length, self.node(number).size_bytes - at)
        if length <= 0:
            return b""
        if length > LONGEST_READ_BYTES:
            raise Unreadable("too much at once")
        found = bytearray(length)
        for piece in self.pieces(number):
            begin, end = max(piece.at, at), min(piece.at + piece.length, at + length)
            if begin < end:
                found[begin - at : end - at] = self._view.read(piece.disk + begin - piece.at, end - begin)
        return bytes(found)

    def metadata(self) -> list[Piece]:
        """See FileSystem: bitmaps (who writes looks for room), the journal's begin, inodes around those seen.

        The kernel reads the inode tables by ``TABLE_AHEAD`` blocks (mount option inode_readahead_blks).
        """
        found: list[Piece] = []
        groups = min(-(-self._blocks // self._blocks_per_group), GROUPS_MOST)
        places = {self._first_block + 1 + number for number in range(-(-groups * self._descriptor // self._block))}
        for group in range(groups):
            places.update(self._group(group)[:2])
        if self._journal:
            places.update((piece.disk - self._start) // self._block for piece in self.pieces(self._journal)[:1])
        for block in self._tables:
            places.update(range(block, block + TABLE_AHEAD))
        for place in sorted(places):
            found.append(Piece(len(found) * self._block, self._start + place * self._block, self._block))
        return found

    def _keep(self, count: int) -> None:
        self._kept += count
        if self._kept > KEPT_MOST:
            raise Spent

    def _group(self, group: int) -> tuple[int, int, int]:
        """Blocks where a group has its block bitmap, inode bitmap and inode table."""
        per_block = self._block // self._descriptor
        block = group // per_block
        if block < self._first_meta:
            place = self._first_block + 1 + block
        else:
            first = block * per_block
            place = self._first_block + first * self._blocks_per_group + self._has_copy(first)
        at = self._start + place * self._block + group % per_block * self._descriptor
        raw = self._view.read(at, self._descriptor)
        low = struct.unpack_from("<III", raw, 0)
        high = struct.unpack_from("<III", raw, 32) if self._descriptor >= 64 else (0, 0, 0)
        return low[0] + (high[0] << 32), low[1] + (high[1] << 32), low[2] + (high[2] << 32)

    def _has_copy(self, group: int) -> bool:
        """Whether a group begins with a copy of the superblock."""
        if group <= 1 or not self._readonly_features & SPARSE_SUPER:
            return True
        return any(group == base**power for base in (3, 5, 7) for power in range(1, 20))

    def _inode(self, number: int) -> tuple[Node, int, bytes]:
        found = self._nodes.get(number)
        if found is None:
            if not 1 <= number <= self._inodes:
                raise Unreadable(f"inode {number}")
            group, index = divmod(number - 1, self._inodes_per_group)
            at = self._start + self._group(group)[2] * self._block + index * self._inode_bytes
            raw = self._view.read(at, 128)
            self._tables.add((at - self._start) // self._block // TABLE_AHEAD * TABLE_AHEAD)
            mode, low = struct.unpack_from("<H2xI", raw, 0)
            flags = struct.unpack_from("<I", raw, 32)[0]
            high = struct.unpack_from("<I", raw, 108)[0]
            kind = KINDS.get(mode >> 12, "other")
            found = self._nodes[number] = Node(number, kind, low + (high << 32)), flags, raw[40:100]
        return found

    def _extents(self, raw: bytes, depth: int | None, found: list[Piece]) -> None:
        magic, count, _, deep = _EXTENT_HEAD.unpack_from(raw)
        if magic != EXTENT_MAGIC or deep > DEEPEST or (depth is not None and deep != depth):
            raise Unreadable("no extents")
        if _EXTENT_HEAD.size * (count + 1) > len(raw):
            raise Unreadable("too many extents")
        for at in range(_EXTENT_HEAD.size, _EXTENT_HEAD.size * (count + 1), _EXTENT_HEAD.size):
            if deep:
                low, high = _EXTENT_INDEX.unpack_from(raw, at)
                block = self._start + (low + (high << 32)) * self._block
                self._keep(LEAF_COST)
                self._extents(self._view.read(block, self._block), deep - 1, found)
                continue
            first, length, high, low = _EXTENT_LEAF.unpack_from(raw, at)
            disk = self._start + (low + (high << 32)) * self._block
            if length <= UNWRITTEN:
                found.append(Piece(first * self._block, disk, length * self._block))
            if len(found) > PIECES_MOST:
                raise Unreadable("too many extents")

    @staticmethod
    def _names(raw: bytes, at: int, end: int, found: dict[str, int]) -> None:
        while at + 8 < end:
            number, length, letters = _ENTRY.unpack_from(raw, at)
            if length < 8 or at + length > end or letters > length - 8:
                return
            if number:
                name = raw[at + 8 : at + 8 + letters].decode("utf-8", "surrogateescape")
                if name not in {".", ".."}:
                    found[name] = number
            at += length
