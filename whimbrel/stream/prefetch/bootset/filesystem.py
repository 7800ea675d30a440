"""What the boot set asks of a file system, and paths on top of it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol

from whimbrel.stream.prefetch.bootset.view import Unreadable

LINKS_MOST: Final = 24
PATH_MOST: Final = 4096

Kind = Literal["file", "directory", "link", "other"]


class Node(NamedTuple):
    """An inode."""

    number: int
    kind: Kind
    size_bytes: int


class Piece(NamedTuple):
    """A part of a file that lies together on the disk; in bytes."""

    at: int
    disk: int
    length: int


class FileSystem(Protocol):
    """Read-only; everything raises Absent and Unreadable, and ends on any content."""

    root: int

    def node(self, number: int) -> Node:
        """An inode by its number."""
        ...

    def entries(self, number: int) -> dict[str, int]:
        """Names in a directory and their inodes, without the dots."""
        ...

    def link(self, number: int) -> str:
        """Where a symbolic link leads."""
        ...

    def pieces(self, number: int) -> list[Piece]:
        """Where the data of a file or directory lies, in its order."""
        ...

    def metadata(self) -> list[Piece]:
        """What the kernel reads besides when it mounts and writes, ``at`` counting within the list."""
        ...

    def read(self, number: int, at: int, length: int) -> bytes:
        """Bytes of a file, less at its end; holes are zeros."""
        ...


class Tree:
    """Paths in one file system. Symbolic links are followed inside it."""

    def __init__(self, filesystem: FileSystem) -> None:
        self.filesystem = filesystem
        self._found: dict[str, tuple[str, int]] = {}

    def find(self, path: str) -> tuple[str, Node]:
        """The real path and the inode. Raises Absent, Unreadable (also if there is none)."""
        known = self._found.get(path)
        if known is None:
            known = self._found[path] = self._walk(path)
        return known[0], self.filesystem.node(known[1])

    def names(self, path: str) -> dict[str, int]:
        """Entries of a directory. Raises Absent, Unreadable."""
        return self.filesystem.entries(self.find(path)[1].number)

    def _walk(self, path: str) -> tuple[str, int]:
        left = [part for part in reversed(path.split("/")) if part]
        trail: list[tuple[str, int]] = [("", self.filesystem.root)]
        links = 0
        while left:
            part = left.pop()
            if part == ".":
                continue
            if part == "..":
                if len(trail) > 1:
                    trail.pop()
                continue
            number = self.filesystem.entries(trail[-1][1]).get(part)
            if number is None:
                raise Unreadable(f"no {path}")
            if self.filesystem.node(number).kind != "link":
                trail.append((part, number))
                continue
            links += 1
            target = self.filesystem.link(number)
            if links > LINKS_MOST or len(target) > PATH_MOST:
                raise Unreadable(f"{path} leads nowhere")
            if target.startswith("/"):
                del trail[1:]
            left += [each for each in reversed(target.split("/")) if each]
        return "/".join(name for name, _ in trail) or "/", trail[-1][1]
