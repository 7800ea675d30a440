"""An API as a process: uwsgi with one worker, on the service's usual port of its cloud's address."""

from __future__ import annotations

import urllib.error
import urllib.request

from labs.openstack.layout import PORTS, CloudLayout, venv_dir
from labs.openstack.processes import Daemon

OPTIONS = (
    *("--processes", "1", "--threads", "6", "--enable-threads", "--lazy-apps", "--master", "--need-app"),
    *("--die-on-term", "--thunder-lock", "--disable-logging", "--buffer-size", "65535"),
)


def api(cloud: CloudLayout, service: str, module: str, *, pyargv: str = "", **environment: str) -> Daemon:
    """Return the API daemon ``<cloud>-<service>-api`` that serves ``module:application``."""
    command = [
        f"{venv_dir()}/bin/uwsgi",
        *("--http-socket", f"{cloud.address}:{PORTS[service]}", "--module", f"{module}:application"),
        *OPTIONS,
        # the plain HTTP socket does not keep connections alive, and clients must be told so
        *("--add-header", "Connection: close"),
        *(("--pyargv", pyargv) if pyargv else ()),
    ]
    url = cloud.url(service)
    return Daemon(f"{cloud.name}-{service}-api", command, healthy=lambda: answers(url), environment=environment)


def answers(url: str) -> bool:
    """Tell whether an API answers with anything but a server error."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
