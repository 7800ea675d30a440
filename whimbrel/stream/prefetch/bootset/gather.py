"""From a disk's first bytes to the files that a boot will read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from whimbrel.stream.prefetch.bootset.ext4 import Ext4
from whimbrel.stream.prefetch.bootset.filesystem import FileSystem, Piece, Tree
from whimbrel.stream.prefetch.bootset.linux import Emit, Gathering, stages
from whimbrel.stream.prefetch.bootset.partitions import partitions
from whimbrel.stream.prefetch.bootset.settle import Task, settle
from whimbrel.stream.prefetch.bootset.view import View

KINDS: tuple[Callable[[View, int], FileSystem], ...] = (Ext4,)


def gather(view: View, emit: Emit) -> int:
    """Emit what a boot from this disk will read, the most urgent first; how many file systems were looked into.

    Raises Spent, and what the view's fetch raises.
    """
    trees = _trees(view)
    for tree in trees:
        for tasks in stages(Gathering(tree, emit)):
            settle(view, [*tasks])
            settle(view, [_metadata(tree, emit)])
    return len(trees)


def _trees(view: View) -> list[Tree]:
    found: dict[int, Tree] = {}
    starts: list[int] = []

    def table() -> Iterable[Task]:
        starts.extend(partitions(view))
        return ()

    def opened(start: int, kind: Callable[[View, int], FileSystem]) -> Task:
        def task() -> Iterable[Task]:
            tree = Tree(kind(view, start))
            tree.find("/")
            found.setdefault(start, tree)
            return ()

        return task

    settle(view, [table])
    settle(view, [opened(start, kind) for start in starts for kind in KINDS])
    return [found[start] for start in starts if start in found]


def _metadata(tree: Tree, emit: Emit) -> Task:
    def task() -> Iterable[Task]:
        emit("", tree.filesystem.metadata())
        return ()

    return task


def chunks_of(pieces: Iterable[Piece], chunk_bytes: int) -> list[int]:
    """The chunks that hold these pieces, in their order, each once."""
    found: dict[int, None] = {}
    for piece in pieces:
        found.update(dict.fromkeys(range(piece.disk // chunk_bytes, -(-(piece.disk + piece.length) // chunk_bytes))))
    return list(found)
