"""Nova with one compute host, whose hypervisor is the cloud's libvirtd."""

from __future__ import annotations

from openstack.connection import Connection

from labs.openstack import mariadb
from labs.openstack.cinder import TOKEN_RULES
from labs.openstack.layout import CloudLayout, venv_dir
from labs.openstack.libvirtd import secret_uuid
from labs.openstack.ovs import OVSDB
from labs.openstack.processes import Daemon
from labs.openstack.rabbit import client
from labs.openstack.template import authtoken, connection, service_conf, write
from labs.openstack.wsgi import api

CELL0 = "00000000-0000-0000-0000-000000000000"
SERVICES = ("nova-conductor", "nova-scheduler", "nova-compute")


def instances_path(cloud: CloudLayout) -> str:
    """Return the directory of the instances; console logs lie in it."""
    return str(cloud.var("nova") / "instances")


def write_config(cloud: CloudLayout) -> None:
    """Write nova.conf."""
    extra = {
        "instances": instances_path(cloud),
        "api_database": connection(cloud, "nova_api"),
        "glance": cloud.url("glance"),
        "libvirt_uri": cloud.libvirt_uri,
        "ceph_user": cloud.ceph_user,
        "secret_uuid": secret_uuid(cloud),
        "ovsdb": OVSDB,
    }
    text = service_conf(cloud, "nova", "common.conf") + service_conf(cloud, "nova", "nova.conf", **extra)
    text += authtoken(cloud, "keystone_authtoken", "nova", *TOKEN_RULES)
    text += authtoken(cloud, "service_user", "nova", "send_service_user_token = true")
    text += authtoken(cloud, "placement", "placement")
    text += authtoken(cloud, "neutron", "neutron", "service_metadata_proxy = false")
    write(cloud.etc("nova") / "nova.conf", text)
    # the API looks for it beside nova.conf
    write(cloud.etc("nova") / "api-paste.ini", (venv_dir() / "etc/nova/api-paste.ini").read_text())
    for part in ("lock", "instances"):  # without the latter no compute node is registered
        (cloud.var("nova") / part).mkdir(parents=True, exist_ok=True)


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return API, conductor, scheduler, compute."""
    conf = ["--config-file", str(cloud.etc("nova") / "nova.conf")]
    parts = [client(cloud, program, conf) for program in SERVICES]
    return [api(cloud, "nova", "nova.wsgi.osapi_compute", OS_NOVA_CONFIG_DIR=str(cloud.etc("nova"))), *parts]


def ensure_cells(cloud: CloudLayout) -> None:
    """Name the two cells in the API's database; by SQL in milliseconds, by nova-manage in 12 s."""
    database = cloud.database("nova_api")
    if "cell1" in mariadb.query(cloud.lab, "select name from cell_mappings", database):
        return
    rabbit = f"rabbit://guest:guest@{cloud.lab.shared_address}:5672/{cloud.name}"
    mariadb.query(
        cloud.lab,
        "insert into cell_mappings (created_at, uuid, name, transport_url, database_connection, disabled) values "
        f"(now(), '{CELL0}', 'cell0', 'none:///', '{connection(cloud, 'nova_cell0')}', 0), "
        f"(now(), uuid(), 'cell1', '{rabbit}', '{connection(cloud, 'nova')}', 0)",
        database,
    )


def missing(connected: Connection) -> list[str]:
    """Return the services that have not reported themselves up, and "hypervisor" without one."""
    up = {service.binary for service in connected.compute.services() if service.state == "up"}
    absent = [name for name in SERVICES if name not in up]
    return absent if list(connected.compute.hypervisors()) else [*absent, "hypervisor"]
