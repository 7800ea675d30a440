"""Configuration files from the templates beside this file: ``$name`` is replaced, ``$$`` is one dollar."""

from __future__ import annotations

from pathlib import Path
from string import Template

from labs.openstack.layout import PASSWORD, CloudLayout, venv_dir

TEMPLATES = Path(__file__).with_name("templates")


def render(name: str, **values: object) -> str:
    """Return template ``name`` filled in; raises KeyError for a value that is missing."""
    return Template((TEMPLATES / name).read_text()).substitute({key: str(value) for key, value in values.items()})


def write(path: Path, text: str) -> Path:
    """Write a file with its directory; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def service_conf(cloud: CloudLayout, service: str, template: str, **extra: object) -> str:
    """Return a service's configuration: its template, with the values every service has in common."""
    lab = cloud.lab
    values: dict[str, object] = {
        "cloud": cloud.name,
        "region": cloud.region,
        "address": cloud.address,
        "hostname": cloud.hostname,
        "var": cloud.var(service),
        "etc": cloud.etc(service),
        "venv": venv_dir(),
        "password": PASSWORD,
        "rabbit": f"rabbit://guest:guest@{lab.shared_address}:5672/{cloud.name}",
        "database": connection(cloud, service),
        "keystone": cloud.url("keystone"),
        "privsep": f"{venv_dir()}/bin/privsep-helper --config-file",
    }
    return render(template, **(values | extra))


def connection(cloud: CloudLayout, database: str) -> str:
    """Return the SQLAlchemy URL of one of the cloud's databases."""
    address = cloud.lab.shared_address
    return f"mysql+pymysql://lab:{PASSWORD}@{address}:3306/{cloud.database(database)}?charset=utf8"


def authtoken(cloud: CloudLayout, section: str, user: str, *options: str) -> str:
    """Return a section with the credentials of service account ``user``."""
    lines = [
        f"[{section}]",
        f"auth_url = {cloud.url('keystone')}",
        f"www_authenticate_uri = {cloud.url('keystone')}",
        "auth_type = password",
        f"username = {user}",
        f"password = {PASSWORD}",
        "project_name = service",
        "user_domain_id = default",
        "project_domain_id = default",
        f"region_name = {cloud.region}",
        *options,
    ]
    return "\n".join(lines) + "\n"
