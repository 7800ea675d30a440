"""Configuration files of one cloud's libvirtd and its QEMU driver."""

from __future__ import annotations

import uuid
from pathlib import Path

from labs.kvm.layout import CloudLayout


def libvirtd_conf(cloud: CloudLayout, tls: Path, tls_port: int | None) -> str:
    """Return libvirtd.conf: own socket and host uuid, TLS on 127.0.0.1 when ``tls_port`` is given.

    The host uuid is derived from the cloud's path: stable over restarts, and unlike between clouds, because
    libvirt refuses to migrate or share between hosts of one uuid.
    """
    lines = [
        f'unix_sock_dir = "{cloud.runtime}"',
        'unix_sock_rw_perms = "0700"',
        'auth_unix_rw = "none"',
        'auth_unix_ro = "none"',
        f'log_outputs = "3:file:{cloud.log}"',
        f'host_uuid = "{uuid.uuid5(uuid.NAMESPACE_URL, str(cloud.root))}"',
        "listen_tcp = 0",
        f"listen_tls = {int(tls_port is not None)}",
    ]
    if tls_port is not None:
        lines += [
            'listen_addr = "127.0.0.1"',
            f'tls_port = "{tls_port}"',
            f'ca_file = "{tls}/server/ca-cert.pem"',
            f'cert_file = "{tls}/server/server-cert.pem"',
            f'key_file = "{tls}/server/server-key.pem"',
            'auth_tls = "none"',  # the client's certificate is checked against the CA
        ]
    return "\n".join(lines) + "\n"


def qemu_conf(tls: Path) -> str:
    """Return qemu.conf: QEMU as root, no security driver, no cgroups, no helper daemons, TLS for backups and NBD."""
    lines = [
        'user = "root"',
        'group = "root"',
        "dynamic_ownership = 0",
        "remember_owner = 0",
        'security_driver = "none"',
        "cgroup_controllers = []",
        "namespaces = []",
        'stdio_handler = "file"',  # no virtlogd
        # Displays on sockets of the cloud's own: two daemons on one machine give both the first free TCP port.
        "vnc_auto_unix_socket = 1",
    ]
    lines += [f'{prefix}_tls_x509_cert_dir = "{tls}/server"' for prefix in ("backup", "nbd", "migrate")]
    lines += ["backup_tls_x509_verify = 1", "migrate_tls_x509_verify = 1"]
    return "\n".join(lines) + "\n"


DEFAULT_ACCOUNT = "libvirt-qemu"
ACCOUNT_LINES = {
    "passwd": f"{DEFAULT_ACCOUNT}:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin",
    "group": f"{DEFAULT_ACCOUNT}:x:64055:",
}


def with_default_account(table: str, kind: str) -> str:
    """Return the ``passwd`` or ``group`` table with Debian's QEMU account in it.

    The QEMU driver looks its compiled-in default account up before it reads qemu.conf, and does not start without. The
    package that creates it would bring systemd units and a firewall along; so the cloud sees a table of its own.
    """
    if any(line.startswith(f"{DEFAULT_ACCOUNT}:") for line in table.splitlines()):
        return table
    return table.rstrip("\n") + "\n" + ACCOUNT_LINES[kind] + "\n"
