"""What a Linux with systemd reads when it boots, found by name in its file system.

Nothing here is certain: a name that is not there is passed over, and what is fetched for nothing costs little, for it
would come later anyway. Rules were made with the traces for tuning (docs/streaming.md).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from whimbrel.stream.prefetch.bootset.elf import linked
from whimbrel.stream.prefetch.bootset.filesystem import Node, Piece, Tree
from whimbrel.stream.prefetch.bootset.names import (
    CONFIGURATION,
    EARLY,
    LIBRARY_DIRECTORIES,
    LOADED_LIBRARIES,
    MACHINES,
    MODULES,
    PERL,
    PROGRAMS,
    PYTHON,
    PYTHON_PARTS,
    SHELLS,
    UNIT_DIRECTORIES,
    WALKED,
)
from whimbrel.stream.prefetch.bootset.settle import Task
from whimbrel.stream.prefetch.bootset.view import Unreadable

SCRIPT_MOST_BYTES: Final = 256
UNIT_MOST_BYTES: Final = 64 << 10
SCRIPT_READ_BYTES: Final = 64 << 10
WORDS_MOST: Final = 2000
_WORD: Final = re.compile(r"[\w./+-]{2,}")
_COMMANDS: Final = re.compile(r"^Exec(?:Start|StartPre|StartPost|Condition|Reload)\s*=(.*(?:\\\n.*)*)", re.MULTILINE)
_WANTED: Final = re.compile(r"^(?:Wants|Requires|BindsTo|Upholds|Also|Sockets|Unit|OnSuccess)\s*=(.*)", re.MULTILINE)

Emit = Callable[[str, list[Piece]], None]
"""A file that will be read, and where it lies."""


class Gathering:
    """Tasks that find files and emit them."""

    def __init__(self, tree: Tree, emit: Emit) -> None:
        self.tree = tree
        self._emit = emit
        self._done: set[str] = set()
        self._closed: set[str] = set()
        self._units: set[str] = set()
        self._words: set[str] = set()

    def file(self, path: str, *, most_bytes: int = 32 << 20) -> Task:
        """A file, and if it is a program what it is linked with or run by."""

        def task() -> Iterable[Task]:
            real, node = self.tree.find(path)
            if real in self._done:
                return ()
            if node.kind == "file" and node.size_bytes <= most_bytes:
                self._emit(real, self.tree.filesystem.pieces(node.number))
            self._done.add(real)
            return (self._closure(real, node),) if node.kind == "file" else ()

        return task

    def under(self, path: str, *, depth: int = 3, most_bytes: int = 32 << 20, match: str = "") -> Task:
        """The files in a directory whose names match, and in those below."""

        def task() -> Iterable[Task]:
            real, node = self.tree.find(path)
            if node.kind != "directory":
                return (self.file(path, most_bytes=most_bytes),)
            more: list[Task] = []
            for name, number in self.tree.filesystem.entries(node.number).items():
                below = f"{real}/{name}"
                kind = self.tree.filesystem.node(number).kind
                if kind == "directory":
                    if depth > 1:
                        more.append(self.under(below, depth=depth - 1, most_bytes=most_bytes, match=match))
                elif re.search(match, name):
                    more.append(self.file(below, most_bytes=most_bytes))
            return more

        return task

    def walk(self, path: str) -> Task:
        """A directory, and the inodes of what is in it."""

        def task() -> Iterable[Task]:
            for number in self.tree.names(path).values():
                self.tree.filesystem.node(number)
            return ()

        return task

    def units(self, directory: str) -> Task:
        """The programs of the units that are wanted or required in a directory of units."""

        def task() -> Iterable[Task]:
            names = self.tree.names(directory)
            return [self._wanted(f"{directory}/{name}") for name in names if name.endswith((".wants", ".requires"))]

        return task

    def _wanted(self, directory: str) -> Task:
        return lambda: [self.unit(name) for name in self.tree.names(directory)]

    def unit(self, name: str) -> Task:
        """The programs that a unit starts, and the units that it wants."""
        if name in self._units:
            return lambda: ()
        self._units.add(name)

        def task() -> Iterable[Task]:
            node = self._unit(name)
            text = self.tree.filesystem.read(node.number, 0, UNIT_MOST_BYTES).decode("utf-8", "replace")
            lines = "\n".join(_COMMANDS.findall(text))
            wanted = " ".join(_WANTED.findall(text)).split()
            return [*self._mentioned(lines), *(self.unit(each) for each in wanted)]

        return task

    def _unit(self, name: str) -> Node:
        template = re.sub(r"@[^.]*\.", "@.", name)
        for directory in UNIT_DIRECTORIES:
            for each in dict.fromkeys((name, template)):
                try:
                    node = self.tree.find(f"{directory}/{each}")[1]
                except Unreadable:
                    continue
                if node.kind == "file":
                    return node
        raise Unreadable(f"no unit {name}")

    def modules(self) -> Task:
        """The newest kernel's tables of modules, and the modules that guests load."""

        def task() -> Iterable[Task]:
            newest = max(self.tree.names("/usr/lib/modules"), key=_version)
            return [self._modules_of(f"/usr/lib/modules/{newest}")]

        return task

    def _modules_of(self, directory: str) -> Task:
        def task() -> Iterable[Task]:
            names = self.tree.names(directory)
            tables = [self.file(f"{directory}/{name}") for name in names if name.startswith("modules.")]
            node = self.tree.find(f"{directory}/modules.dep")[1]
            text = self.tree.filesystem.read(node.number, 0, node.size_bytes).decode("utf-8", "replace")
            paths: dict[str, None] = {}
            for line in text.splitlines():
                module, _, needed = line.partition(":")
                if module.rpartition("/")[2].partition(".")[0].replace("-", "_") in MODULES:
                    paths.update(dict.fromkeys((module, *needed.split())))
            return [*tables, *(self.file(f"{directory}/{path}") for path in paths)]

        return task

    def _mentioned(self, text: str) -> list[Task]:
        """Files and programs that a script or a command line speaks of."""
        return [self._program(word) for word in list(dict.fromkeys(_WORD.findall(text)))[:WORDS_MOST]]

    def _program(self, word: str) -> Task:
        if word in self._words:
            return lambda: ()
        self._words.add(word)
        if word.startswith("/"):
            return self.file(word, most_bytes=64 << 20)

        def task() -> Iterable[Task]:
            for place in ("/usr/bin", "/usr/sbin"):
                if "/" not in word and word in self.tree.names(place):
                    return (self.file(f"{place}/{word}"),)
            return ()

        return task

    def _closure(self, real: str, node: Node) -> Task:
        def read(at: int, length: int) -> bytes:
            return self.tree.filesystem.read(node.number, at, length)

        def task() -> Iterable[Task]:
            head = read(0, SCRIPT_MOST_BYTES)
            if head.startswith(b"#!"):
                return self._script(read(0, SCRIPT_READ_BYTES).decode("utf-8", "replace"))
            program = linked(read)
            places = [each.replace("$ORIGIN", posixpath.dirname(real)) for each in program.directories]
            more = [self.file(program.interpreter)] if program.interpreter else []
            return [*more, *(self._library(name, places) for name in program.libraries), *self._runtime(real)]

        return task

    def _script(self, text: str) -> list[Task]:
        first, _, rest = text.partition("\n")
        words = first[2:].split()
        if not words:
            return []
        shell = posixpath.basename(words[0]) in SHELLS
        return [*self._mentioned(" ".join(words)), *(self._mentioned(rest) if shell else ())]

    def _runtime(self, real: str) -> list[Task]:
        """What an interpreter reads of its own before it runs anything."""
        if (python := PYTHON.search(real)) is not None:
            home = f"/usr/lib/{python[1]}"
            parts = [f"{home}/{part}/__pycache__".replace("//", "/") for part in PYTHON_PARTS]
            walked = (f"{home}/lib-dynload", "/usr/lib/python3/dist-packages", f"{home}/site-packages")
            return [
                *(self.under(part, depth=1, match=r"(?<!opt-\d)\.pyc$") for part in parts),
                *(self.walk(path) for path in walked),
            ]
        if PERL.search(real):
            return [self.under(f"/usr/lib/{machine}-linux-gnu/perl-base", depth=2) for machine in MACHINES]
        return []

    def _library(self, name: str, places: list[str]) -> Task:
        if name in self._closed:
            return lambda: ()
        self._closed.add(name)
        if "/" in name:
            return self.file(name)

        def task() -> Iterable[Task]:
            for place in (*places, *LIBRARY_DIRECTORIES):
                try:
                    names = self.tree.names(place)
                except Unreadable:
                    continue
                if name in names:
                    return (self.file(f"{place}/{name}"),)
            return ()

        return task


def _version(name: str) -> list[tuple[int, str]]:
    """By which versions are ordered: numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d]+", name)]


def stages(gathering: Gathering) -> Iterator[list[Task]]:
    """Tasks in the order in which a boot needs what they find; those of one list at once."""
    file, under = gathering.file, gathering.under
    yield [file("/sbin/init"), file("/etc/ld.so.cache"), file("/etc/fstab"), under("/etc", depth=1, most_bytes=1 << 20)]
    yield [
        under("/usr/lib/systemd", depth=1),
        under("/usr/lib/systemd/system-generators"),
        under("/etc/systemd", depth=4),
        under("/usr/lib/systemd/system", depth=2),
        under("/usr/lib/systemd/system-preset"),
        under("/usr/lib/systemd/system-environment-generators"),
        under("/usr/lib/environment.d"),
        under("/usr/lib/locale/C.utf8"),
        *(file(f"/usr/bin/{name}") for name in EARLY),
    ]
    yield [
        gathering.modules(),
        under("/usr/lib/udev"),
        under("/etc/udev"),
        *(under(f"/{top}/{name}") for top in ("etc", "usr/lib", "usr/share") for name in CONFIGURATION),
        *(under(f"/usr/lib/{name}-linux-gnu/security") for name in MACHINES),
        *(under(path, depth=1, match=LOADED_LIBRARIES) for path in LIBRARY_DIRECTORIES[:3]),
        *(gathering.walk(path) for path in WALKED),
        under("/var/lib/systemd", depth=2),
    ]
    yield [
        *(gathering.unit(name) for name in ("default.target", "sysinit.target", "basic.target", "getty@.service")),
        *(gathering.units(directory) for directory in UNIT_DIRECTORIES),
        *(under(f"/etc/rc{level}.d", match="^S") for level in "S235"),
        *(file(f"/usr/bin/{name}") for name in PROGRAMS),
        *(file(f"/usr/sbin/{name}") for name in PROGRAMS),
    ]
