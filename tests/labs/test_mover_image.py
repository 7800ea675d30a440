"""The mover's image: what is in it runs, and one that is booted serves what it is told, to whom it is told."""

from __future__ import annotations

import base64
import gzip
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.openstack.mover import SERVER_NAME, MoverSettings, ServedVolume, certificate_on, endpoint, user_data
from labs.kvm.initramfs import BootFiles
from labs.kvm.tls import ensure_certificates
from labs.openstack import mover_image
from labs.openstack.__main__ import main
from tests.nbd.programs import free_port
from whimbrel.errors import GuestUnbootable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import open_nbd

SIZE = 3 << 20
VOLUME = "0f2c9a54-6d0c-4f0e-9d6b-1c1d7a0b3e55"
BOOT_S = 300.0
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BootFiles:
    """Kernel and initramfs, without the boot loader."""
    made: list[BootFiles] = []
    monkeypatch.setenv("WHIMBREL_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(mover_image, "ensure_bootable", lambda _, boot, __: made.append(boot))
    mover_image.ensure_image()
    return made[0]


@pytest.mark.lab
def test_what_is_in_it_runs_without_anything_else(boot: BootFiles, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    content = gzip.decompress(boot.initrd.read_bytes())
    subprocess.run(["/bin/busybox", "cpio", "-id"], input=content, cwd=root, capture_output=True, check=True)
    for program in mover_image.PROGRAMS:
        done = subprocess.run(
            ["chroot", root, f"/usr/bin/{program}", "--version"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "BEGIN DH PARAMETERS" in (root / "tls/dh-params.pem").read_text()
    for order in (root / "lib/modules").glob("*.order"):
        assert all((root / "lib/modules" / line.split()[0]).exists() for line in order.read_text().splitlines())


@pytest.mark.openstack
def test_it_serves_what_it_is_told_to_whom_it_is_told(boot: BootFiles, tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "ours")
    ensure_certificates(tmp_path / "strangers")
    settings = MoverSettings(image="", flavor="", network="", tls_dir=str(tmp_path / "ours/client"), port=10900)
    served = ServedVolume(VOLUME, SIZE, writable=True)
    with booted(boot, tmp_path, settings, served) as (console, port):
        certificate = said(console)
        ours = endpoint(settings, served, address="127.0.0.1", certificate=certificate)
        ours = ours.model_copy(update={"port": port})
        device = open_nbd(ours, timeout_s=60)
        assert device.size_bytes == SIZE  # the disk is longer
        lane = device.lane()
        lane.submit_write(4096, memoryview(b"through the mover"))
        lane.reap()
        lane.flush()
        device.close()
        for stranger in (
            with_tls(ours, directory=str(tmp_path / "strangers/client")),
            with_tls(ours, server_certificate=(tmp_path / "strangers/client/ca-cert.pem").read_text()),
            with_tls(ours, server_name="another"),
            ours.model_copy(update={"tls": None}),
            ours.model_copy(update={"export": VOLUME.replace("0f", "1f")}),
        ):
            with pytest.raises(WhimbrelError):
                open_nbd(stranger, timeout_s=60)
    with (tmp_path / "disk").open("rb") as disk:
        disk.seek(4096)
        assert disk.read(17) == b"through the mover"


@pytest.mark.openstack
def test_without_a_config_drive_it_says_so(boot: BootFiles, tmp_path: Path) -> None:
    with booted(boot, tmp_path, None, ServedVolume(VOLUME, SIZE, writable=True)) as (console, _):
        with pytest.raises(GuestUnbootable, match="no config drive"):
            said(console)


@pytest.mark.openstack
def test_the_command_writes_the_image_and_tells_how_it_is_uploaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHIMBREL_LAB_CACHE", str(tmp_path / "cache"))
    assert main(["mover-image", str(tmp_path / "mover.raw")]) == 0
    assert (tmp_path / "mover.raw").stat().st_size == 64 << 20
    told = capsys.readouterr().out
    assert told.startswith(f"openstack image create --disk-format raw --file {tmp_path / 'mover.raw'} ")
    assert all(f"--property {key}={value} " in told for key, value in mover_image.PROPERTIES.items())


def with_tls(known: NbdEndpoint, **changes: str) -> NbdEndpoint:
    assert known.tls is not None
    assert known.tls.server_name == SERVER_NAME
    return known.model_copy(update={"tls": known.tls.model_copy(update=changes)})


def said(console: Path) -> str:
    """The certificate, once it is on the console."""
    deadline = time.monotonic() + BOOT_S
    while True:
        text = console.read_text(errors="replace") if console.exists() else ""
        certificate = certificate_on(text)
        if certificate is not None:
            return certificate
        assert time.monotonic() < deadline, text[-500:]
        time.sleep(0.5)


@contextmanager
def booted(
    boot: BootFiles, directory: Path, settings: MoverSettings | None, served: ServedVolume
) -> Iterator[tuple[Path, int]]:
    """Console and port of a mover server in QEMU, as Nova would make it; without settings it has no config drive."""
    disk, console, port = directory / "disk", directory / "console", free_port()
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    words = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "256", "-display", "none", "-monitor", "none"]
    words += ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", "console=ttyS0 quiet loglevel=1"]
    words += ["-serial", f"file:{console}", "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci"]
    words += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", f"scsi-hd,drive=disk,serial={VOLUME}"]
    inside = settings.port if settings is not None else 1
    words += ["-nic", f"user,model=virtio,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{inside}"]
    if settings is not None:
        told = directory / "drive/openstack/latest/user_data"
        told.parent.mkdir(parents=True)
        text = user_data(settings, [served], address="10.0.2.15", cidr="10.0.2.0/24", gateway="10.0.2.2", mtu=1500)
        told.write_bytes(base64.b64decode(text))
        drive = directory / "drive.iso"
        made = ["genisoimage", "-quiet", "-V", "config-2", "-r", "-J", "-o", str(drive), str(directory / "drive")]
        subprocess.run(made, check=True)
        words += ["-drive", f"file={drive},if=none,id=told,media=cdrom", "-device", "scsi-cd,drive=told"]
    running = subprocess.Popen(words)
    try:
        yield console, port
    finally:
        running.kill()
        running.wait(30)
