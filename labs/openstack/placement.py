"""Placement: what the compute hosts have to give."""

from __future__ import annotations

from labs.openstack.layout import CloudLayout
from labs.openstack.processes import Daemon
from labs.openstack.template import authtoken, service_conf, write
from labs.openstack.wsgi import api


def write_config(cloud: CloudLayout) -> None:
    """Write placement.conf."""
    text = service_conf(cloud, "placement", "placement.conf")
    write(cloud.etc("placement") / "placement.conf", text + authtoken(cloud, "keystone_authtoken", "placement"))


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return the API."""
    etc = str(cloud.etc("placement"))
    return [api(cloud, "placement", "placement.wsgi.api", OS_PLACEMENT_CONFIG_DIR=etc)]
