"""RabbitMQ for both clouds: one node, one virtual host per cloud."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from labs.openstack import processes
from labs.openstack.layout import CLOUDS, CloudLayout, OpenStackLayout, venv_dir
from labs.openstack.processes import Daemon, run
from labs.openstack.template import render, write

PORT = 5672
PROGRAMS = "/usr/lib/rabbitmq/bin"  # Debian's wrapper in /usr/sbin insists on another user
ERLANG = (  # two schedulers that sleep when there is nothing to do
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
)
ADD_VHOST = (
    'case rabbit_vhost:exists(<<"{0}">>) of true -> ok; false -> rabbit_vhost:add(<<"{0}">>, <<"lab">>), '
    'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{0}">>, <<".*">>, <<".*">>, <<".*">>, <<"lab">>) end.'
)


def _environment(layout: OpenStackLayout) -> dict[str, str]:
    data = layout.root / "rabbit"
    return {
        "HOME": str(data),
        "RABBITMQ_NODENAME": "lab@localhost",
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_LOG_BASE": str(data),
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_PID_FILE": str(data / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def daemon(layout: OpenStackLayout) -> Daemon:
    """Return the broker."""
    return Daemon(
        "rabbitmq",
        [f"{PROGRAMS}/rabbitmq-server"],
        healthy=lambda: _answers(layout),
        environment=_environment(layout),
        grace_s=8,
    )


def _answers(layout: OpenStackLayout) -> bool:
    with socket.create_connection((layout.shared_address, PORT), timeout=2) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        return connection.recv(1) == b"\x01"  # a method frame: the broker takes part in the handshake


def client(
    cloud: CloudLayout, program: str, command: Sequence[str], *, holds: int | None = PORT, **environment: str
) -> Daemon:
    """Return the daemon ``<cloud>-<program>`` of a service that is well while ``talks_to`` says so of ``holds``."""
    name = f"{cloud.name}-{program}"
    return Daemon(
        name,
        [f"{venv_dir()}/bin/{program}", *command],
        healthy=lambda: processes.talks_to(cloud.lab, name, holds),
        environment=environment,
        hostname=cloud.hostname,
    )


def start(layout: OpenStackLayout) -> None:
    """Start the broker and have a virtual host for every cloud."""
    data = layout.root / "rabbit"
    data.mkdir(parents=True, exist_ok=True)
    write(data / "rabbitmq.conf", render("rabbitmq.conf", address=layout.shared_address))
    write(data / "enabled_plugins", "[].\n")
    processes.start(layout, daemon(layout))
    processes.wait_healthy(layout, daemon(layout))
    statement = " ".join(ADD_VHOST.format(cloud).removesuffix(".") + "," for cloud in CLOUDS) + " ok."
    words = [f"{PROGRAMS}/rabbitmqctl", "-q", "eval", statement]
    run(layout, words, log="rabbitmq-commands", **_environment(layout))
