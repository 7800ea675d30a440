"""One libvirtd per cloud, its compute host: own directories, own host name, own host uuid, the cloud's Ceph key."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import libvirt

from labs.kvm.daemon_config import qemu_conf, with_default_account
from labs.openstack import processes
from labs.openstack.ceph import key_of
from labs.openstack.layout import CloudLayout
from labs.openstack.processes import Daemon
from labs.openstack.template import render, write

SECRET_XML = "<secret ephemeral='no' private='yes'><uuid>{0}</uuid><usage type='ceph'><name>{1}</name></usage></secret>"


def secret_uuid(cloud: CloudLayout) -> str:
    """Return the uuid under which libvirt knows the cloud's Ceph key."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{cloud.root}/secret"))


def daemon(cloud: CloudLayout) -> Daemon:
    """Return the cloud's libvirtd."""
    base = cloud.root / "libvirt"
    binds: list[tuple[Path, Path]] = [
        (base / "run", Path("/run/libvirt")),
        (base / "lib", Path("/var/lib/libvirt")),
        (base / "cache", Path("/var/cache/libvirt")),
        (base / "etc", Path("/etc/libvirt")),
        (base / "log", Path("/var/log/libvirt")),
        (cloud.lab.ovs_run, Path("/run/openvswitch")),
    ]
    binds += [(base / table, Path("/etc") / table) for table in ("passwd", "group")]
    command = ["/usr/sbin/libvirtd", "-f", str(base / "libvirtd.conf"), "-p", str(cloud.libvirt_run / "pid")]
    return Daemon(
        f"{cloud.name}-libvirtd", command, healthy=lambda: _answers(cloud), binds=binds, hostname=cloud.hostname
    )


def _answers(cloud: CloudLayout) -> bool:
    try:
        connection = libvirt.open(cloud.libvirt_uri)
    except libvirt.libvirtError as error:
        raise OSError(str(error)) from error
    try:
        return bool(connection.getHostname() == cloud.hostname and connection.getCapabilities())
    finally:
        connection.close()


def start(cloud: CloudLayout) -> None:
    """Write the configuration and start the daemon."""
    base = cloud.root / "libvirt"
    cloud.libvirt_run.mkdir(parents=True, exist_ok=True)
    for part in ("run", "lib", "cache", "etc", "log"):
        (base / part).mkdir(parents=True, exist_ok=True)
    # virtlogd is not there: QEMU writes the console logs itself
    write(base / "etc/qemu.conf", without_tls(qemu_conf(base)))
    host = uuid.uuid5(uuid.NAMESPACE_URL, str(base))
    write(base / "libvirtd.conf", render("libvirtd.conf", runtime=cloud.libvirt_run, host_uuid=host))
    for table in ("passwd", "group"):
        write(base / table, with_default_account(Path("/etc", table).read_text(), table))
    processes.start(cloud.lab, daemon(cloud))
    processes.wait_healthy(cloud.lab, daemon(cloud))


def without_tls(conf: str) -> str:
    """Return qemu.conf without its certificates: this lab has none."""
    return "".join(line for line in conf.splitlines(keepends=True) if "_tls_" not in line)


def ensure_secret(cloud: CloudLayout) -> None:
    """Give the cloud's Ceph key to libvirt, for QEMU."""
    connection = libvirt.open(cloud.libvirt_uri)
    try:
        secret = connection.secretDefineXML(SECRET_XML.format(secret_uuid(cloud), f"client.{cloud.ceph_user}"))
        secret.setValue(base64.b64decode(key_of(cloud)))
    finally:
        connection.close()
