"""Documents name what exists: files, headings, make targets, commands and their options, settings, codes."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from pathlib import Path

import click
import pytest
from typer.main import get_command

from whimbrel import errors
from whimbrel.cli.app import app
from whimbrel.config.clouds import load_text
from whimbrel.contracts import timeouts
from whimbrel.contracts.names import SEARCH_ATTRIBUTES
from whimbrel.contracts.timeouts import TABLE
from whimbrel.moverimage import bootdisk, contents, debian, upload
from whimbrel.runtime.settings import WorkerSettings

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "AGENTS.md")
DOCUMENTS = [
    *(REPOSITORY / name for name in TOP),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "deploy").rglob("*.md")),
]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code(text: str) -> list[str]:
    """Lines of code blocks, and what stands between backticks."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [*lines, *re.findall(r"`([^`\n]+)`", prose(text))]


@cache
def anchors(path: Path) -> frozenset[str]:
    """Names under which the headings of a document can be linked to."""
    titles = re.findall(r"^#+ (.+)$", prose(path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return frozenset(title.replace(" ", "-") for title in plain)


@every_document
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name} links to {target}"
        assert found.is_relative_to(REPOSITORY), target
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {target}"


@every_document
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    assert not re.findall(r"@@\w+@@|\bTODO\b|\bTBD\b|\bXXX\b", path.read_text())


@every_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, flags=re.MULTILINE))
    for line in code(path.read_text()):
        for target in re.findall(r"(?:^|&& |[;(] ?)make ((?!-)[a-z0-9-]+)", line):
            assert target in targets, f"{path.name}: make {target}"


@cache
def commands() -> dict[str, frozenset[str]]:
    """Command -> its options."""
    group = get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    found = {}
    for name, command in group.commands.items():
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        found[name] = frozenset(options | {"--help", "-h", "--debug"})
    return found


def calls(text: str) -> list[list[str]]:
    """Words after each ``whimbrel`` at the start of a command."""
    found = []
    for line in code(text):
        match = re.match(r"(?:\S*/)?whimbrel ([a-z].*)", line.strip())
        if match and not line.strip().startswith("whimbrel version") and ":" not in match[1].split()[0]:
            found.append(re.split(r"\s{2,}|\s#|[|;>]", match[1])[0].split())
    return found


@every_document
def test_commands_and_their_options_exist(path: Path) -> None:
    for words in calls(path.read_text()):
        assert words[0] in commands(), f"{path.name}: whimbrel {' '.join(words)}"
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in commands()[words[0]], f"{path.name}: whimbrel {' '.join(words)}"


def test_the_check_of_commands_sees_calls() -> None:
    assert calls("`whimbrel resume`\n```\nwhimbrel report a/b --html FILE   # kept\n```") == [
        ["report", "a/b", "--html", "FILE"],
        ["resume"],
    ]
    assert {"plan", "precheck", "migrate", "rollback", "dev-server"} <= set(commands())


@every_document
def test_settings_exist(path: Path) -> None:
    known = {f"WHIMBREL_{name.upper()}" for name in WorkerSettings.model_fields}
    others = {"WHIMBREL_DEBUG", "WHIMBREL_SKIP_LAB", "WHIMBREL_LAB_ROOT", "WHIMBREL_LAB_CACHE", "WHIMBREL_LAB_ACCEL"}
    others |= {"WHIMBREL_OPENSTACK_ROOT", "WHIMBREL_OPENSTACK_VENV"}
    assert set(re.findall(r"WHIMBREL_[A-Z_]*[A-Z]", path.read_text())) <= known | others


def test_operations_names_every_setting_code_and_attribute() -> None:
    text = (REPOSITORY / "docs/operations.md").read_text()
    for name in WorkerSettings.model_fields:
        assert f"`WHIMBREL_{name.upper()}`" in text, name
    for name in SEARCH_ATTRIBUTES:
        assert f"`{name}`" in text, name
    for name in codes():
        assert f"| `{name}` |" in text, name


def codes() -> list[str]:
    return [name for name, kind in vars(errors).items() if isinstance(kind, type) and leaf(kind)]


def leaf(kind: type) -> bool:
    return issubclass(kind, errors.WhimbrelError) and kind is not errors.WhimbrelError


def test_architecture_names_every_code_and_activity() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    for name in codes():
        assert f"`{name}`" in text, name
    for name in TABLE:
        assert f"`{name}`" in text, name


def test_every_decision_is_in_the_index_and_has_its_parts() -> None:
    index = (REPOSITORY / "docs/adr/README.md").read_text()
    files = sorted((REPOSITORY / "docs/adr").glob("[0-9]*.md"))
    assert len(files) >= 11
    for number, path in enumerate(files, start=1):
        assert path.name.startswith(f"{number:04d}-")
        text = path.read_text()
        title = re.match(rf"# {number:04d}: (.+)\n", text)
        assert title is not None
        assert f"| [{number:04d}]({path.name}) | {title[1]} |" in index
        headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
        assert headings == ["Context", "Decision", "Options", "Consequences"]
        assert re.search(r"^Status: \w+", text, flags=re.MULTILINE)


def test_the_licence_is_whole() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/libvirt.md"])
def test_examples_of_whimbrel_yaml_load(name: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / name).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for text in blocks:
        assert load_text(text, name, REPOSITORY).clouds


def test_the_mover_image_is_uploaded_as_its_command_says_and_needs_the_packages_named() -> None:
    text = (REPOSITORY / "docs/openstack.md").read_text()
    assert "\n".join(["whimbrel mover-image whimbrel-mover.raw", *upload.command(Path("whimbrel-mover.raw"))]) in text
    told = re.search(r"the packages are ([^(]*)", text)
    assert told is not None
    needed = {*contents.PROGRAMS.values(), *bootdisk.PROGRAMS.values(), *bootdisk.FILES.values()}
    needed |= {debian.KERNEL_PACKAGE, "busybox-static"}
    assert set(re.findall(r"[a-z0-9-]+", told[1])) - {"and"} == needed


def test_ports_of_the_driver_are_those_that_a_firewall_is_told() -> None:
    reach = (REPOSITORY / "drivers/libvirt/reach.py").read_text()
    first, count = (
        int(re.findall(rf"^{name} = (\d+)", reach, flags=re.MULTILINE)[0]) for name in ("FIRST_PORT", "PORTS")
    )
    assert f"ports {first} to {first + count - 1}" in (REPOSITORY / "docs/libvirt.md").read_text()


def _s(limit: timedelta | None) -> str:
    return "none" if limit is None else f"{limit.total_seconds():g} s"


def test_the_table_of_timeouts_is_the_codes() -> None:
    rows = {
        cells[0].split("`")[1]: cells[1:]
        for line in (REPOSITORY / "docs/architecture.md").read_text().splitlines()
        if re.match(r"\| `[A-Z_]+`", line) and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    classes = {name: value for name, value in vars(timeouts).items() if isinstance(value, timeouts.Timing)}
    assert set(rows) == set(classes)
    for name, timing in classes.items():
        start, heartbeat, retry, to_close = rows[name]
        assert start.startswith(_s(timing.start_to_close)), name
        assert heartbeat == _s(timing.heartbeat), name
        first = _s(timing.retry.initial_interval)
        last = _s(timing.retry.maximum_interval)
        steady = timing.retry.backoff_coefficient == 1.0
        assert retry.startswith(f"every {first}" if steady else f"from {first} to {last}"), name
        if timing.retry.maximum_attempts:
            assert retry.endswith(f"{timing.retry.maximum_attempts} attempts"), name
        assert to_close.startswith((_s(timing.schedule_to_close), "the plan's")), name
