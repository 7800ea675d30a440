"""Glance: images, as files."""

from __future__ import annotations

from labs.openstack.layout import CloudLayout
from labs.openstack.processes import Daemon
from labs.openstack.template import authtoken, service_conf, write
from labs.openstack.wsgi import api


def write_config(cloud: CloudLayout) -> None:
    """Write glance-api.conf and make the stores' directories."""
    text = service_conf(cloud, "glance", "common.conf")
    text += service_conf(cloud, "glance", "glance.conf", self_url=cloud.url("glance"))
    write(cloud.etc("glance") / "glance-api.conf", text + authtoken(cloud, "keystone_authtoken", "glance"))
    for part in ("images", "staging", "tasks", "cache"):
        (cloud.var("glance") / part).mkdir(parents=True, exist_ok=True)


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return the API."""
    return [api(cloud, "glance", "glance.wsgi.api", OS_GLANCE_CONFIG_DIR=str(cloud.etc("glance")))]
