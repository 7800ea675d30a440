"""KVM is used only where a guest has booted with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.kvm import accel
from labs.kvm.errors import LabError
from labs.kvm.initramfs import BootFiles, ensure_boot_files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHIMBREL_LAB_CACHE", str(tmp_path))
    monkeypatch.delenv("WHIMBREL_LAB_ACCEL", raising=False)
    return tmp_path


def remember(cache: Path, verdict: str) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (cache / f"accel-{boot_id}").write_text(verdict)


def test_the_default_is_emulation_without_a_probe(cache: Path) -> None:
    assert accel.virt_type() == "qemu"
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("verdict", "expected"), [("kvm", "kvm"), ("tcg", "qemu")])
def test_auto_follows_the_remembered_verdict(
    cache: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, expected: str
) -> None:
    remember(cache, verdict)
    monkeypatch.setenv("WHIMBREL_LAB_ACCEL", "auto")
    assert accel.virt_type() == expected


def test_kvm_asked_for_and_not_working_is_an_error(cache: Path) -> None:
    remember(cache, "tcg")
    with pytest.raises(LabError, match="no guest reached user space"):
        accel.virt_type("kvm")


@pytest.mark.usefixtures("cache")
def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(LabError, match="one of tcg, kvm, auto"):
        accel.virt_type("yes")


@pytest.mark.lab
@pytest.mark.timeout(200)
def test_the_probe_sees_a_guest_that_boots() -> None:
    assert accel.boots("tcg", ensure_boot_files(), 120)


@pytest.mark.lab
def test_the_probe_sees_one_that_does_not(tmp_path: Path) -> None:
    no_kernel = tmp_path / "kernel"
    no_kernel.write_bytes(b"not a kernel")
    assert not accel.boots("tcg", BootFiles(no_kernel, no_kernel), 60)
    assert not accel.boots("tcg", ensure_boot_files(), 0.2)
