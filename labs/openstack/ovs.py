"""Open vSwitch in user space, one switch for both clouds, and the wires the provider networks run on.

::

    br-wire: port gw (198.19.<index>.1, the guests' gateway) -- patch -- br-ex-a, br-ex-b    provider network
    br-drill-a, br-drill-b: joined to nothing                                                isolated networks
"""

from __future__ import annotations

import subprocess

from labs.openstack import processes
from labs.openstack.layout import CLOUDS, OpenStackLayout
from labs.openstack.processes import Daemon, run

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
LOG = "ovs-commands"
OVSDB = "tcp:127.0.0.1:6640"


def _vsctl(layout: OpenStackLayout, *words: str) -> str:
    return run(layout, ["ovs-vsctl", "--timeout=30", f"--db={OVSDB}", *words], log=LOG)


def daemons(layout: OpenStackLayout) -> list[Daemon]:
    """Return the switch's database and the switch."""
    socket, data = layout.ovs_run / "db.sock", layout.root / "ovs"
    database = [
        "ovsdb-server",
        str(data / "conf.db"),
        f"--remote=punix:{socket}",
        "--remote=ptcp:6640:127.0.0.1",
        f"--unixctl={layout.ovs_run}/ovsdb.ctl",
    ]
    switch = ["ovs-vswitchd", f"unix:{socket}", f"--unixctl={layout.ovs_run}/ovs-vswitchd.ctl"]
    return [
        Daemon("ovsdb", database, healthy=lambda: _database_answers(layout)),
        Daemon("ovs-vswitchd", switch, healthy=lambda: "br-wire" in _appctl(layout)),
    ]


def _appctl(layout: OpenStackLayout) -> str:
    return run(layout, ["ovs-appctl", "-t", f"{layout.ovs_run}/ovs-vswitchd.ctl", "dpif/show"], log=LOG)


def _database_answers(layout: OpenStackLayout) -> bool:
    _vsctl(layout, "--no-wait", "init")  # a list of the empty database would wait for its first row
    return "_uuid" in _vsctl(layout, "--no-wait", "list", "Open_vSwitch")


def start(layout: OpenStackLayout) -> None:
    """Start the switch and have the bridges of both clouds."""
    layout.ovs_run.mkdir(parents=True, exist_ok=True)
    data = layout.root / "ovs"
    if not (data / "conf.db").exists():
        data.mkdir(parents=True, exist_ok=True)
        run(layout, ["ovsdb-tool", "create", str(data / "conf.db"), SCHEMA], log=LOG)
    database, switch = daemons(layout)
    processes.start(layout, database)
    processes.wait_healthy(layout, database)
    processes.start(layout, switch)
    bridges = ["br-wire", *(f"br-{kind}-{cloud}" for cloud in CLOUDS for kind in ("ex", "drill", "int"))]
    words: list[str] = []
    for bridge in bridges:
        words += ["--", "--may-exist", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev"]
    words += ["--", "--may-exist", "add-port", "br-wire", "gw", "--", "set", "interface", "gw", "type=internal"]
    for cloud in CLOUDS:
        ends = (("br-wire", f"to-{cloud}", f"wire-{cloud}"), (f"br-ex-{cloud}", f"wire-{cloud}", f"to-{cloud}"))
        for bridge, port, peer in ends:
            words += ["--", "--may-exist", "add-port", bridge, port]
            words += ["--", "set", "interface", port, "type=patch", f"options:peer={peer}"]
    _vsctl(layout, *words[1:])
    processes.wait_healthy(layout, switch)
    for step in (("address", "replace", f"{layout.guest_prefix}.1/24", "dev", "gw"), ("link", "set", "gw", "up")):
        subprocess.run(["ip", "-n", layout.namespace, *step], check=True)
