"""Neutron with ML2 and Open vSwitch: flat provider networks, no DHCP, no routers."""

from __future__ import annotations

from openstack.connection import Connection

from labs.openstack import rabbit
from labs.openstack.layout import CLOUDS, MAC_PREFIX, CloudLayout, venv_dir
from labs.openstack.ovs import OVSDB
from labs.openstack.processes import Daemon
from labs.openstack.rabbit import client
from labs.openstack.template import authtoken, service_conf, write
from labs.openstack.wsgi import api

PRIVSEP_CONTEXTS = ("", "_dhcp_release", "_ovs_vsctl", "_namespace", "_conntrack", "_link")
PROGRAMS = {
    "neutron-rpc-server": rabbit.PORT,
    "neutron-periodic-workers": None,  # connects to its database at its first task, up to a minute later
    "neutron-openvswitch-agent": rabbit.PORT,
}
"""Program -> port of what it is deaf without."""


def write_config(cloud: CloudLayout) -> None:
    """Write neutron.conf, which the agent reads too."""
    extra = {"ovsdb": OVSDB, "of_port": 6633 + CLOUDS.index(cloud.name), "base_mac": MAC_PREFIX[cloud.name]}
    path = cloud.etc("neutron") / "neutron.conf"
    text = service_conf(cloud, "neutron", "common.conf") + service_conf(cloud, "neutron", "neutron.conf", **extra)
    # the default helper is sudo, and without it no port is ever wired
    helper = f"helper_command = {venv_dir()}/bin/privsep-helper --config-file {path}\n"
    text += "".join(f"[privsep{context}]\n{helper}" for context in PRIVSEP_CONTEXTS)
    text += authtoken(cloud, "keystone_authtoken", "neutron") + authtoken(cloud, "nova", "nova")
    write(path, text)
    (cloud.var("neutron") / "lock").mkdir(parents=True, exist_ok=True)


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return API, RPC server, periodic workers, agent."""
    etc = cloud.etc("neutron")
    environment = {"OS_NEUTRON_CONFIG_DIR": str(etc), "OS_NEUTRON_CONFIG_FILES": "neutron.conf"}
    command = ["--config-file", str(etc / "neutron.conf")]
    parts = [client(cloud, program, command, holds=port) for program, port in PROGRAMS.items()]
    return [api(cloud, "neutron", "neutron.wsgi.api", **environment), *parts]


def missing(connection: Connection) -> list[str]:
    """Return "neutron-openvswitch-agent" until the agent has reported itself alive."""
    alive = [agent for agent in connection.network.agents() if agent.is_alive]
    return [] if alive else ["neutron-openvswitch-agent"]
