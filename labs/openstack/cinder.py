"""Cinder with two RBD backends: the cloud's own pool, and the pool that both clouds see."""

from __future__ import annotations

from openstack.connection import Connection

from labs.openstack.ceph import SHARED_POOL
from labs.openstack.layout import CloudLayout
from labs.openstack.libvirtd import secret_uuid
from labs.openstack.processes import Daemon
from labs.openstack.rabbit import client
from labs.openstack.template import authtoken, service_conf, write
from labs.openstack.wsgi import api

TOKEN_RULES = ("service_token_roles = service", "service_token_roles_required = true")
BACKENDS = 2


def write_config(cloud: CloudLayout) -> None:
    """Write cinder.conf."""
    extra = {
        "glance": cloud.url("glance"),
        "pool": cloud.pool,
        "shared_pool": SHARED_POOL,
        "ceph_conf": cloud.ceph_conf,
        "ceph_user": cloud.ceph_user,
        "secret_uuid": secret_uuid(cloud),
    }
    text = service_conf(cloud, "cinder", "common.conf") + service_conf(cloud, "cinder", "cinder.conf", **extra)
    text += authtoken(cloud, "keystone_authtoken", "cinder", *TOKEN_RULES)
    text += authtoken(cloud, "nova", "nova", "interface = public")
    text += authtoken(cloud, "service_user", "cinder", "send_service_user_token = true")
    write(cloud.etc("cinder") / "cinder.conf", text)
    for part in ("lock", "conversion"):
        (cloud.var("cinder") / part).mkdir(parents=True, exist_ok=True)


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return API, scheduler, volume manager."""
    conf = f"--config-file {cloud.etc('cinder') / 'cinder.conf'}"

    parts = [
        client(cloud, program, conf.split(), CEPH_CONF=str(cloud.ceph_conf))
        for program in ("cinder-scheduler", "cinder-volume")
    ]
    return [api(cloud, "cinder", "cinder.wsgi.api", pyargv=conf), *parts]


def missing(connection: Connection, expected: dict[str, int] | None = None) -> list[str]:
    """Return the services that have not reported themselves up."""
    wanted = expected or {"cinder-scheduler": 1, "cinder-volume": BACKENDS}
    up = [service.binary for service in connection.block_storage.services() if service.state == "up"]
    return [name for name, count in wanted.items() if up.count(name) < count]
