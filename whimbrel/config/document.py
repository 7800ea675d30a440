"""YAML text as plain data that remembers on which line each key stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from whimbrel.config.problem import InvalidFile, Loc, Problem

MAX_BYTES = 8 << 20
MAX_NODES = 500_000
"""Aliases can make a short text expand without end; a plan of ten thousand VMs has far fewer nodes."""
MAX_DEPTH = 40


@dataclass(slots=True)
class Document:
    """Plain data (``dict``, ``list``, scalars) and the lines (from 1) of its keys and items."""

    file: str
    data: Any
    lines: dict[Loc, int] = field(default_factory=dict)

    def line(self, loc: Loc) -> int | None:
        """Line of the value at ``loc``, or of the nearest thing around it that was written down."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.lines:
                return self.lines[loc[:end]]
        return None

    def problem(self, loc: Loc, what: str) -> Problem:
        """A problem at ``loc``, with its line."""
        return Problem(self.file, self.line(loc), loc, what)


class _Loader(yaml.SafeLoader):
    """Safe YAML with times left as text: the models read them, and see whether a zone was written."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Builder:
    """Turns YAML nodes into data, noting lines and repeated keys."""

    def __init__(self, document: Document, loader: _Loader) -> None:
        self.document = document
        self.loader = loader
        self.problems: list[Problem] = []
        self.nodes = 0
        self.flattened: set[int] = set()

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(loc) > MAX_DEPTH:
            raise InvalidFile([self.document.problem((), "too deep or too large once aliases are expanded")])
        self.document.lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, TypeError):
            self.problems.append(self.document.problem(loc, "cannot be read as a YAML value"))
            return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        if id(node) not in self.flattened:  # an aliased node comes by again, its merges already resolved in place
            self.flattened.add(id(node))
            self._refuse_repeats(node, loc)
            self.loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(self.document.problem(loc, "a key must be plain text"))
                continue
            key: str = key_node.value
            self.document.lines[(*loc, key)] = key_node.start_mark.line + 1
            found[key] = self.build(value_node, (*loc, key))
        return found

    def _refuse_repeats(self, node: yaml.MappingNode, loc: Loc) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in first:
                what = f"given twice, first on line {first[key_node.value]}"
                self.problems.append(Problem(self.document.file, line, (*loc, key_node.value), what))
            first.setdefault(key_node.value, line)


def read_text(path: Path) -> str:
    """The file's text. Raises InvalidFile."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidFile([Problem(str(path), None, (), f"cannot be read: {error.strerror}")]) from error
    if len(raw) > MAX_BYTES:
        raise InvalidFile([Problem(str(path), None, (), f"larger than {MAX_BYTES >> 20} MiB")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFile([Problem(str(path), None, (), "is not UTF-8 text")]) from error


def parse(text: str, file: str) -> Document:
    """The one YAML mapping in ``text``; ``file`` is the name used in messages. Raises InvalidFile."""
    document = Document(file, {})
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise InvalidFile([Problem(file, None, (), "is empty")])
        builder = _Builder(document, loader)
        document.data = builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"not valid YAML: {error.problem or error.context}"
        raise InvalidFile([Problem(file, mark.line + 1 if mark else None, (), what)]) from error
    except yaml.YAMLError as error:
        raise InvalidFile([Problem(file, None, (), "not valid YAML: it holds characters that YAML forbids")]) from error
    finally:
        loader.dispose()
    if builder.problems:
        raise InvalidFile(builder.problems)
    if not isinstance(document.data, dict):
        raise InvalidFile([document.problem((), "must be a mapping of keys to values at the top")])
    return document
