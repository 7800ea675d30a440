"""What the image of mover servers is made of, and what is said where something of it is missing."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.errors import InvalidPlan, PreconditionFailed
from whimbrel.moverimage import bootdisk, contents, debian
from whimbrel.moverimage.cpio import archive

OURS = {"init", "lib/modules/early.order", "lib/modules/late.order", "tls/dh-params.pem"}
PARTITION = f"@@{1 << 20}"


@given(code=st.binary(min_size=300, max_size=512), end_mib=st.integers(min_value=2, max_value=2048))
def test_the_boot_record_has_one_active_partition(code: bytes, end_mib: int) -> None:
    record = bootdisk.boot_record(code, end_mib)
    assert len(record) == 512
    assert record[: min(440, len(code))] == code[:440]
    assert record[510:] == b"\x55\xaa"
    active, kind, first, count = struct.unpack("<B3xB3xII", record[446:462])
    assert (active, kind, first) == (0x80, 0x0E, 2048)
    assert (first + count) * 512 == end_mib << 20
    assert record[462:510] == bytes(48)


def test_modules_load_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("k/a.ko: k/b-x.ko k/c.ko\nk/b-x.ko: k/c.ko\nk/c.ko:\nk/z.ko.xz:\n")
    assert [path.name for path in debian.load_order(tmp_path, ("c", "a", "builtin"))] == ["c.ko", "b-x.ko", "a.ko"]
    assert [path.name for path in debian.load_order(tmp_path, ("b_x",))] == ["c.ko", "b-x.ko"]
    with pytest.raises(PreconditionFailed, match="compressed"):
        debian.load_order(tmp_path, ("z",))


@pytest.mark.parametrize("options", ["csum", "csum=0;reboot", "csum=0  gso=0", "csum=0\n"])
def test_what_is_no_option_of_a_module_goes_into_no_image(options: str) -> None:
    with pytest.raises(InvalidPlan, match="no options"):
        contents.of_this_machine(options)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "BOOT", tmp_path)
    monkeypatch.setattr(debian, "BUSYBOX", tmp_path / "busybox")
    monkeypatch.setattr(debian, "environment", lambda: {"PATH": str(tmp_path)})
    monkeypatch.setattr(bootdisk, "FILES", {tmp_path / "mbr.bin": "syslinux-common"})
    with pytest.raises(PreconditionFailed) as caught:
        contents.of_this_machine()
    told = set(caught.value.action.partition("--no-install-recommends ")[2].split())
    named = {*contents.PROGRAMS.values(), *bootdisk.PROGRAMS.values()}
    assert told == named | {"linux-image-cloud-amd64", "busybox-static", "syslinux-common"}
    assert "qemu-storage-daemon" in caught.value.message


def test_a_busybox_with_libraries_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busybox").write_bytes(b"\x7fELF/lib64/ld-linux-x86-64.so.2")
    monkeypatch.setattr(debian, "BUSYBOX", tmp_path / "busybox")
    with pytest.raises(PreconditionFailed, match="needs libraries"):
        debian.static_busybox()


def test_packages_that_are_named_are_those_that_are_installed_for_it() -> None:
    listed = Path(__file__).resolve().parents[2] / "deploy/debian-packages.txt"
    installed = {line.split("#")[0].strip() for line in listed.read_text().splitlines()}
    needed = {*bootdisk.PROGRAMS.values(), *bootdisk.FILES.values(), "gnutls-bin", "busybox-static"}
    assert needed | {debian.KERNEL_PACKAGE} <= installed


# -- as this machine makes it, with its packages ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> contents.MoverImage:
    return contents.of_this_machine("csum=0 gso=0")


@pytest.fixture(scope="module")
def root(image: contents.MoverImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked."""
    root = tmp_path_factory.mktemp("root")
    unpacked = gzip.decompress(image.initrd)
    subprocess.run(["/bin/busybox", "cpio", "-id"], input=unpacked, cwd=root, capture_output=True, check=True)
    return root


@pytest.mark.lab
def test_what_is_in_it_runs_without_anything_else(root: Path) -> None:
    for program in contents.PROGRAMS:
        done = subprocess.run(
            ["chroot", root, f"/usr/bin/{program}", "--version"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "BEGIN DH PARAMETERS" in (root / "tls/dh-params.pem").read_text()
    for order in (root / "lib/modules").glob("*.order"):
        assert all((root / "lib/modules" / line.split()[0]).exists() for line in order.read_text().splitlines())
    assert "virtio_net.ko csum=0 gso=0\n" in (root / "lib/modules/late.order").read_text()


@pytest.mark.lab
def test_nothing_but_debians_files_and_the_script_is_in_it(image: contents.MoverImage, root: Path) -> None:
    """So no secret of this machine can be."""
    theirs = {path.read_bytes() for path in image.sources}
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert set(files) >= OURS
    assert {name for name, content in files.items() if content not in theirs} == OURS
    assert files["init"] == contents.INIT.read_bytes()
    assert all(debian.packages_of([path]) for path in image.sources)
    names = {package.name for package in image.packages()}
    assert {"busybox-static", "gnutls-bin", "libc6", "mtools", "qemu-system-common", "syslinux-common"} <= names
    assert any(name.startswith("linux-image-") for name in names)


@pytest.mark.lab
def test_it_is_the_same_to_the_byte_when_it_is_made_again(image: contents.MoverImage, tmp_path: Path) -> None:
    first, again = tmp_path / "first.raw", tmp_path / "elsewhere" / "again.raw"
    again.parent.mkdir()
    image.write(first)
    time.sleep(2.1)  # times on FAT have steps of 2 s
    made_again = contents.of_this_machine("csum=0 gso=0")
    assert made_again.digest == image.digest != contents.of_this_machine().digest
    made_again.write(again)
    sums = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, again)}
    assert len(sums) == 1
    assert first.stat().st_size == contents.IMAGE_MIB << 20
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    subprocess.run(["mcopy", "-i", f"{first}{PARTITION}", "::vmlinuz", tmp_path / "kernel"], check=True)
    assert (tmp_path / "kernel").read_bytes() == image.kernel.read_bytes()


@pytest.mark.lab
def test_a_failure_leaves_nothing_behind(image: contents.MoverImage, tmp_path: Path) -> None:
    large = archive([("large", 0o100644, bytes(contents.IMAGE_MIB << 20))])
    with pytest.raises(PreconditionFailed, match="mcopy failed"):
        bootdisk.write(tmp_path / "x.raw", image.kernel, large, "", partition_end_mib=64, image_mib=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.lab
def test_the_script_parses() -> None:
    words = ["/bin/busybox", "sh", "-n", str(contents.INIT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
