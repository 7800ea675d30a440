"""Ceph on one node, for both clouds: a monitor, a manager, one object store on a sparse file; cephx on.

The manager cannot be left out: without it Ceph reports no free space and Cinder's scheduler refuses every volume.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from labs.kvm.errors import LabError
from labs.openstack import processes
from labs.openstack.layout import CLOUDS, CloudLayout, OpenStackLayout
from labs.openstack.processes import Daemon, run
from labs.openstack.template import render, write

SHARED_POOL = "shared"
OSD_BYTES = 64 << 30  # sparse
LOG = "ceph-commands"
MON_CAPS = ("--cap", "mon", "allow *")


def _data(layout: OpenStackLayout) -> Path:
    return layout.root / "ceph"


def admin_conf(layout: OpenStackLayout) -> Path:
    """Return the ceph.conf of client.admin and of the daemons."""
    return _data(layout) / "ceph.conf"


def command(layout: OpenStackLayout, *arguments: str) -> str:
    """Run ``ceph`` as admin inside the lab; return what it prints. Raises LabError after 30 s without a monitor."""
    return run(layout, ["ceph", "-c", str(admin_conf(layout)), "--connect-timeout", "30", *arguments], log=LOG)


def rbd(layout: OpenStackLayout, *arguments: str) -> str:
    """Run ``rbd`` as admin inside the lab; return what it prints."""
    return run(layout, ["rbd", "-c", str(admin_conf(layout)), *arguments], log=LOG)


def daemons(layout: OpenStackLayout) -> list[Daemon]:
    """Return monitor, manager, object store in the order they are started."""

    def daemon(name: str, program: str, ident: str) -> Daemon:
        log = processes.log_of(layout, name)
        words = [program, "-c", str(admin_conf(layout)), "-i", ident, "-f", "--log-file", str(log)]
        return Daemon(name, words, healthy=lambda: _healthy(layout, name))

    return [
        daemon("ceph-mon", "ceph-mon", "a"),
        daemon("ceph-mgr", "ceph-mgr", "x"),
        daemon("ceph-osd", "ceph-osd", "0"),
    ]


def _healthy(layout: OpenStackLayout, name: str) -> bool:
    match name:
        case "ceph-mon":
            return bool(json.loads(command(layout, "quorum_status", "-f", "json"))["quorum"])
        case "ceph-mgr":
            return bool(json.loads(command(layout, "mgr", "stat", "-f", "json"))["available"])
        case _:
            up = json.loads(command(layout, "osd", "stat", "-f", "json"))["num_up_osds"]
            return bool(up == 1 and json.loads(command(layout, "df", "-f", "json"))["stats"]["total_bytes"])


def ensure_cluster(layout: OpenStackLayout) -> None:
    """Make the cluster unless it exists, start its daemons, and have pools and keys; returns when it is well."""
    data = _data(layout)
    mon, mgr, osd = daemons(layout)
    if not (data / "mon-made").exists():
        _make_monitor(layout)
    _start(layout, mon)
    if not (data / "osd-made").exists():
        _make_store(layout)
    processes.start(layout, mgr)
    processes.start(layout, osd)
    for pool in (SHARED_POOL, *(layout.cloud(name).pool for name in CLOUDS)):
        _ensure_pool(layout, pool)
    for name in CLOUDS:
        cloud = layout.cloud(name)
        ensure_key(layout, cloud.ceph_user, [cloud.pool, SHARED_POOL], cloud.ceph_conf.parent)
    processes.wait_healthy(layout, mgr)
    processes.wait_healthy(layout, osd)


def _start(layout: OpenStackLayout, daemon: Daemon) -> None:
    processes.start(layout, daemon)
    processes.wait_healthy(layout, daemon)


def _make_monitor(layout: OpenStackLayout) -> None:
    data, address = _data(layout), layout.shared_address
    fsid = str(uuid.uuid4())
    for part in ("mon", "mgr", "osd"):
        (data / part).mkdir(parents=True, exist_ok=True)
    keyring = data / "keyring"
    keyring.unlink(missing_ok=True)
    conf = render(
        "ceph.conf",
        fsid=fsid,
        address=address,
        data=data,
        runtime=layout.runtime,
        logs=layout.logs,
        keyring=keyring,
        osd_bytes=OSD_BYTES,
    )
    write(admin_conf(layout), conf)
    tool = ["ceph-authtool", str(keyring), "--gen-key"]
    run(layout, [*tool, "--create-keyring", "-n", "mon.", *MON_CAPS], log=LOG)
    everything = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
    run(layout, [*tool, "-n", "client.admin", *everything], log=LOG)
    run(layout, [*tool, "-n", "mgr.x", *_caps(mon="allow profile mgr", osd="allow *")], log=LOG)
    addresses = f"[v2:{address}:3300,v1:{address}:6789]"
    monmap = str(data / "monmap")
    run(layout, ["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", addresses, monmap], log=LOG)
    mkfs = ["ceph-mon", "-c", str(admin_conf(layout)), "-i", "a", "--mkfs", "--monmap", monmap]
    run(layout, [*mkfs, "--keyring", str(keyring)], log=LOG)
    (data / "mon-made").touch()


def _caps(**caps: str) -> list[str]:
    return [word for part, cap in caps.items() for word in ("--cap", part, cap)]


def _make_store(layout: OpenStackLayout) -> None:
    data = _data(layout)
    ident = uuid.uuid4()
    osd_key = data / "osd" / "keyring"
    osd_key.unlink(missing_ok=True)
    run(layout, ["ceph-authtool", str(osd_key), "--create-keyring", "--gen-key", "-n", "osd.0"], log=LOG)
    command(layout, "osd", "new", str(ident), "0")
    caps = ("mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *")
    command(layout, "auth", "add", "osd.0", "-i", str(osd_key), *caps)
    run(layout, ["ceph-authtool", str(data / "keyring"), "--import-keyring", str(osd_key)], log=LOG)
    mkfs = ["ceph-osd", "-c", str(admin_conf(layout)), "-i", "0", "--mkfs", "--osd-uuid", str(ident)]
    run(layout, mkfs, log=LOG)
    (data / "osd-made").touch()


def pools(layout: OpenStackLayout) -> list[str]:
    """Return the names of all pools."""
    return [str(name) for name in json.loads(command(layout, "osd", "pool", "ls", "-f", "json"))]


def _ensure_pool(layout: OpenStackLayout, name: str) -> None:
    if name in pools(layout):
        return
    command(layout, "osd", "pool", "create", name, "8", "8", "replicated", "--size", "1")
    command(layout, "osd", "pool", "application", "enable", name, "rbd")


def ensure_key(layout: OpenStackLayout, user: str, allowed: Sequence[str], directory: Path) -> Path:
    """Have a key ``client.<user>`` for the pools ``allowed``, its keyring and a ceph.conf in ``directory``.

    Returns the ceph.conf; it names the keyring, so a client needs only it and the user's name.
    """
    osd = ", ".join(f"profile rbd pool={pool}" for pool in allowed)
    caps = ("mon", "profile rbd", "mgr", "profile rbd", "osd", osd)
    text = command(layout, "auth", "get-or-create", f"client.{user}", *caps)
    keyring = write(directory / f"ceph.client.{user}.keyring", text)
    keyring.chmod(0o600)
    fsid = command(layout, "fsid").strip()
    conf = render("client-ceph.conf", fsid=fsid, address=layout.shared_address, keyring=keyring)
    return write(directory / "ceph.conf", conf)


def remove_key(layout: OpenStackLayout, user: str) -> None:
    """Take a key away; absent is fine."""
    command(layout, "auth", "del", f"client.{user}")


def key_of(cloud: CloudLayout) -> str:
    """Return the cloud's secret key, as libvirt wants it."""
    key = command(cloud.lab, "auth", "get-key", f"client.{cloud.ceph_user}").strip()
    if not key:
        raise LabError(f"Ceph has no key client.{cloud.ceph_user}")
    return key
