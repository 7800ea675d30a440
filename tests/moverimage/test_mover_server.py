"""A mover server that is booted from its image serves what it is told, to whom it is told."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from drivers.openstack.mover import SERVER_NAME, MoverSettings, ServedVolume, certificate_on, endpoint, user_data
from labs.kvm.tls import ensure_certificates
from whimbrel.errors import GuestUnbootable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.moverimage.contents import of_this_machine
from whimbrel.nbd import open_nbd

SIZE = 3 << 20
VOLUME = "0f2c9a54-6d0c-4f0e-9d6b-1c1d7a0b3e55"
BOOT_S = 300.0
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is uploaded."""
    made = tmp_path_factory.mktemp("image") / "mover.raw"
    of_this_machine().write(made)
    return made


def test_it_serves_what_it_is_told_to_whom_it_is_told(image: Path, tmp_path: Path) -> None:
    as_documented(tmp_path / "ours")
    ensure_certificates(tmp_path / "strangers")
    settings = MoverSettings(image="", flavor="", network="", tls_dir=str(tmp_path / "ours"), port=10900)
    served = ServedVolume(VOLUME, SIZE, writable=True)
    with booted(image, tmp_path, settings, served) as (console, port):
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


@pytest.mark.slow
def test_without_a_config_drive_it_says_so(image: Path, tmp_path: Path) -> None:
    with booted(image, tmp_path, None, ServedVolume(VOLUME, SIZE, writable=True)) as (console, _):
        with pytest.raises(GuestUnbootable, match="no config drive"):
            said(console)


def as_documented(directory: Path) -> None:
    """Keys of clients, made by the commands that operators are given."""
    directory.mkdir()
    text = (Path(__file__).resolve().parents[2] / "docs/openstack.md").read_text()
    script = re.search(r"^### Its clients' keys\n.*?^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert script is not None
    done = subprocess.run(["sh", "-e"], input=script[1], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all((directory / name).stat().st_mode & 0o077 == 0 for name in ("ca-key.pem", "client-key.pem"))
    (directory / "ca-key.pem").unlink()


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


def forwarded(monitor: Path) -> int:
    """The port of this machine that the system chose, as QEMU's monitor tells it."""
    deadline = time.monotonic() + 30
    told = ""
    while not (found := re.search(r"HOST_FORWARD\S*\s+\d+\s+\S+\s+(\d+)", told)):
        assert time.monotonic() < deadline, told
        with suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5)
            line.connect(str(monitor))
            line.sendall(b"info usernet\n")
            told = ""
            while told.count("(qemu)") < 2 and (more := line.recv(4096)):
                told += more.decode(errors="replace")
    return int(found[1])


@contextmanager
def booted(
    image: Path, directory: Path, settings: MoverSettings | None, served: ServedVolume
) -> Iterator[tuple[Path, int]]:
    """Console and port of a mover server in QEMU, as Nova would make it; without settings it has no config drive."""
    disk, console, monitor = directory / "disk", directory / "console", directory / "monitor"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    words = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "256", "-display", "none"]
    words += ["-serial", f"file:{console}", "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci"]
    words += ["-monitor", f"unix:{monitor},server=on,wait=off"]
    own = f"file={image},format=raw,if=none,id=own,snapshot=on"
    words += ["-drive", own, "-device", "scsi-hd,drive=own,bootindex=1"]
    words += ["-drive", f"file={disk},format=raw,if=none,id=disk", "-device", f"scsi-hd,drive=disk,serial={VOLUME}"]
    inside = settings.port if settings is not None else 1
    words += ["-nic", f"user,model=virtio,restrict=on,hostfwd=tcp:127.0.0.1:0-:{inside}"]
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
        yield console, forwarded(monitor)
    finally:
        running.kill()
        running.wait(30)
