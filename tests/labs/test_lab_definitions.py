"""What the lab writes for others to read: layout, domain XML, configuration, certificates, initramfs."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from labs.kvm import DiskSpec, GuestSpec
from labs.kvm.daemon_config import libvirtd_conf, qemu_conf, with_default_account
from labs.kvm.domain import domain_xml
from labs.kvm.errors import LabError
from labs.kvm.initramfs import BootFiles, ensure_boot_files
from labs.kvm.layout import LabLayout
from labs.kvm.tls import ensure_certificates

DEEP = Path("/srv") / "/".join(["directory-with-a-long-name"] * 6)


def test_sockets_stay_short_wherever_the_lab_lies() -> None:
    layout = LabLayout(DEEP)
    assert len(str(layout.cloud("c" * 16).socket)) < 90
    assert len(str(layout.guest_socket("g" * 48))) < 90


def test_labs_and_clouds_differ_in_everything_that_is_shared_by_the_machine() -> None:
    clouds = [LabLayout(Path(root)).cloud(name) for root in ("/srv/one", "/srv/two") for name in ("a", "b")]
    assert len({cloud.bridge for cloud in clouds}) == 4
    assert all(len(cloud.bridge) <= 15 for cloud in clouds)
    assert len({cloud.uri for cloud in clouds}) == 4
    configs = [libvirtd_conf(cloud, DEEP, 16514) for cloud in clouds]
    uuids = {line for config in configs for line in config.splitlines() if line.startswith("host_uuid")}
    assert len(uuids) == 4
    assert configs[0] == libvirtd_conf(clouds[0], DEEP, 16514), "the same after a restart"


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a" * 17])
def test_a_bad_cloud_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cloud name"):
        LabLayout(Path("/srv")).cloud(name)


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden"])
def test_a_bad_guest_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="guest name"):
        LabLayout(Path("/srv")).guest_dir(name)


def test_domain_xml_says_what_the_spec_says() -> None:
    spec = GuestSpec(
        "app<1>",
        disks=(DiskSpec(1 << 20, "raw", error_policy="report"), DiskSpec(1 << 20, "qcow2", "scsi", cache="none")),
        mac="52:54:00:AA:BB:CC",
        network="lab",
        rate=7,
        ignore_acpi=True,
    )
    assert spec.targets() == ["vda", "sda"]
    xml = domain_xml(spec, BootFiles(Path("/k"), Path("/i")), [Path("/v&0"), Path("/v1")], Path("/log"), Path("/sock"))
    root = ET.fromstring(xml)
    assert root.findtext("name") == "app<1>"
    assert root.findtext("uuid") == spec.uuid
    disks = root.findall("./devices/disk")
    assert [disk.find("source").get("file") for disk in disks] == ["/v&0", "/v1"]  # type: ignore[union-attr]
    assert disks[0].find("driver").attrib == {"name": "qemu", "type": "raw", "error_policy": "report"}  # type: ignore[union-attr]
    assert disks[1].find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}  # type: ignore[union-attr]
    assert root.find("./devices/interface/mac").get("address") == "52:54:00:aa:bb:cc"  # type: ignore[union-attr]
    assert root.find("./devices/interface/source").get("network") == "lab"  # type: ignore[union-attr]
    assert root.find("./devices/serial/source[@append='on']") is not None
    assert root.find("./devices/controller[@type='scsi']") is not None
    words = (root.findtext("./os/cmdline") or "").split()
    assert {"wb.rate=7", "wb.ignore_acpi=1", "wb.scsi=1"} <= set(words)


@given(name=st.text("abcdefghij0123456789-", min_size=1, max_size=20))
def test_a_derived_mac_is_valid_and_stable(name: str) -> None:
    mac = GuestSpec(name).effective_mac()
    assert mac == GuestSpec(name).effective_mac()
    assert mac.startswith("52:54:00:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6


def test_the_default_account_is_added_once() -> None:
    once = with_default_account("root:x:0:0::/root:/bin/sh", "passwd")
    assert once.splitlines()[-1].startswith("libvirt-qemu:x:")
    assert with_default_account(once, "passwd") == once


def test_backups_over_tls_ask_for_a_certificate() -> None:
    text = qemu_conf(Path("/tls"))
    assert 'backup_tls_x509_cert_dir = "/tls/server"' in text
    assert "backup_tls_x509_verify = 1" in text


def test_displays_of_two_clouds_cannot_ask_for_one_port() -> None:
    assert "vnc_auto_unix_socket = 1" in qemu_conf(Path("/tls"))


def test_certificates_belong_together_are_private_and_kept(tmp_path: Path) -> None:
    ensure_certificates(tmp_path)
    ca = x509.load_pem_x509_certificate((tmp_path / "client/ca-cert.pem").read_bytes())
    for name in (
        "server/server-cert.pem",
        "server/client-cert.pem",
        "client/client-cert.pem",
        "libvirt/clientcert.pem",
    ):
        certificate = x509.load_pem_x509_certificate((tmp_path / name).read_bytes())
        certificate.verify_directly_issued_by(ca)
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    keys = list(tmp_path.rglob("*key.pem"))
    assert len(keys) == 4
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    ensure_certificates(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pem")} == before


@pytest.mark.lab
def test_the_initramfs_is_an_archive_cpio_can_read_and_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHIMBREL_LAB_CACHE", str(tmp_path))
    files = ensure_boot_files()
    archive = gzip.decompress(files.initrd.read_bytes())
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["/bin/busybox", "cpio", "-id"], input=archive, cwd=unpacked, capture_output=True, check=True)
    assert (unpacked / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
    assert (unpacked / "init").stat().st_mode & 0o111
    for order in (unpacked / "lib").glob("*.order"):
        assert all((unpacked / "lib" / name).exists() for name in order.read_text().split())
    assert "virtio_blk.ko" in (unpacked / "lib/disk.order").read_text().split()

    written = files.initrd.stat().st_mtime_ns
    assert ensure_boot_files() == files
    assert files.initrd.stat().st_mtime_ns == written
    assert len(list(tmp_path.glob("initramfs-*"))) == 1


@pytest.mark.lab
def test_the_guests_script_parses() -> None:
    script = Path(__file__).resolve().parents[2] / "labs/kvm/guest-init.sh"
    done = subprocess.run(["/bin/busybox", "sh", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
