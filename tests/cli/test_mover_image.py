"""``whimbrel mover-image`` as an operator types it: the file, what it is made of, how it is uploaded."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import call
from whimbrel.moverimage import debian, upload


@pytest.mark.lab
def test_the_image_is_written_and_what_to_type_next_is_told(tmp_path: Path) -> None:
    file = tmp_path / "the mover.raw"
    ran = call("mover-image", file)
    assert ran.code == 0, ran.err
    summed = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"sha256 {summed}" in ran.err
    assert "qemu-system-common " in ran.err
    words = shlex.split(ran.out.replace("\\\n", " "))
    assert words[:3] == ["openstack", "image", "create"]
    assert words[words.index("--file") + 1] == str(file)
    given = [words[at + 1] for at, word in enumerate(words) if word == "--property"]
    assert given == [f"{key}={value}" for key, value in upload.PROPERTIES.items()]
    assert words[-1] == upload.IMAGE_NAME

    again = call("mover-image", file, "--json")
    assert again.code == 2
    assert again.error["code"] == "Exists"
    told = call("mover-image", file, "--force", "--json").result
    assert (told["sha256"], told["file"]) == (summed, str(file))
    assert shlex.split(told["upload"]) == words
    assert {"name", "version"} == set(told["packages"][0])


def test_a_machine_without_the_packages_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "BOOT", tmp_path)
    ran = call("mover-image", tmp_path / "x.raw")
    assert ran.code == 1
    assert "whimbrel mover-image: this machine lacks a cloud kernel" in ran.err
    assert "what to do: on Debian 12: apt-get install --no-install-recommends linux-image-cloud-amd64" in ran.err
    assert not (tmp_path / "x.raw").exists()


@pytest.mark.lab
def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    ran = call("mover-image", tmp_path / "nowhere" / "x.raw", "--json")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (2, "Unwritable")


def test_options_of_the_card_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    ran = call("mover-image", tmp_path / "x.raw", "--nic-options", "csum=0; halt")
    assert ran.code == 2
    assert "are no options of a module" in ran.err
