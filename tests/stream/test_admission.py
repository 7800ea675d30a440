"""Who may connect to a stream's socket, tried by processes of other users."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from whimbrel.stream.listener import listen_unix

QEMU, GROUP, OTHER = 64123, 64124, 64125
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to act as other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass and nobody else may list."""
    with tempfile.TemporaryDirectory(prefix="wb-admit-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def as_user(user: int, group: int, groups: Sequence[int], act: Callable[[], object]) -> bool:
    """Do something in a child process of another user; False if it was not permitted."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            act()
        except PermissionError:
            os._exit(77)
        except BaseException:  # pytest goes on in the parent only
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 77}
    return code == 0


def connects(path: Path, user: int, group: int) -> bool:
    def act() -> None:
        with socket.socket(socket.AF_UNIX) as mine:
            mine.connect(str(path))

    return as_user(user, group, [], act)


@ROOT
def test_only_the_client_gets_in(place: Path) -> None:
    with listen_unix(place / "s", 0o666, client=(QEMU, GROUP)):
        assert connects(place / "s", QEMU, GROUP)
        assert not connects(place / "s", OTHER, GROUP)
        assert not connects(place / "s", OTHER, OTHER)
        with socket.socket(socket.AF_UNIX) as mine:
            mine.connect(str(place / "s"))


@ROOT
@pytest.mark.parametrize(("groups", "others"), [([GROUP], False), ([], True)])
def test_without_the_right_to_give_files_away(place: Path, groups: list[int], others: bool) -> None:
    """A member of the client's group lets that group in; who is no member can only let everybody in."""
    mine = place / "mine"
    mine.mkdir()
    os.chown(mine, OTHER, OTHER)
    mine.chmod(0o711)
    assert as_user(OTHER, OTHER, groups, partial(listen_unix, mine / "s", 0o666, (QEMU, GROUP)))
    mode = (mine / "s").stat().st_mode & 0o777
    assert mode == (0o666 if others else 0o660)
    assert (mine / "s").stat().st_gid == (OTHER if others else GROUP)
