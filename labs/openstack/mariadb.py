"""MariaDB for both clouds: one daemon, one database per cloud and service. Speed before durability."""

from __future__ import annotations

from pathlib import Path

from labs.openstack import processes
from labs.openstack.layout import PASSWORD, CloudLayout, OpenStackLayout
from labs.openstack.processes import Daemon, run

DATABASES = ("keystone", "placement", "glance", "cinder", "nova", "nova_api", "nova_cell0", "neutron")
LOG = "mariadb-commands"


def daemon(layout: OpenStackLayout) -> Daemon:
    """Return the server."""
    options = [
        f"--datadir={_data(layout)}",
        f"--socket={layout.mysql_socket}",
        f"--bind-address={layout.shared_address}",
        "--user=root",
        "--skip-name-resolve",
        "--max-connections=1000",
        "--performance-schema=OFF",
        "--innodb-buffer-pool-size=256M",
        "--innodb-log-file-size=96M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--skip-innodb-doublewrite",
        "--character-set-server=utf8mb3",
        "--collation-server=utf8mb3_general_ci",
    ]
    return Daemon(
        "mariadb",
        ["mariadbd", "--no-defaults", *options],
        healthy=lambda: query(layout, "select 1").strip() == "1",
        grace_s=15,
    )


def _data(layout: OpenStackLayout) -> Path:
    return layout.root / "mysql"


def start(layout: OpenStackLayout) -> None:
    """Make the data directory unless it exists, and start the server."""
    made = _data(layout) / "whimbrel-made"
    if not made.exists():
        _data(layout).mkdir(parents=True, exist_ok=True)
        options = ["--no-defaults", f"--datadir={_data(layout)}", "--user=root", "--skip-test-db"]
        run(layout, ["mariadb-install-db", *options, "--auth-root-authentication-method=socket"], log=LOG)
        made.touch()
    processes.start(layout, daemon(layout))
    processes.wait_healthy(layout, daemon(layout))


def _client(layout: OpenStackLayout, program: str) -> list[str]:
    return [program, "--no-defaults", "-uroot", f"--socket={layout.mysql_socket}"]


def query(layout: OpenStackLayout, statement: str, database: str = "") -> str:
    """Run SQL as root; return rows, columns apart by tabs."""
    words = [*_client(layout, "mariadb"), "-N", "-e", statement]
    return run(layout, [*words, database] if database else words, log=LOG)


def ensure_databases(cloud: CloudLayout) -> None:
    """Have the cloud's empty databases and the account of all services."""
    statements = [
        f"CREATE USER IF NOT EXISTS lab@'%' IDENTIFIED BY '{PASSWORD}'",
        "GRANT ALL ON *.* TO lab@'%'",
        *(f"CREATE DATABASE IF NOT EXISTS {cloud.database(name)} CHARACTER SET utf8mb3" for name in DATABASES),
    ]
    query(cloud.lab, "; ".join(statements))


def dump(cloud: CloudLayout, database: str) -> str:
    """Return one database as SQL."""
    words = [*_client(cloud.lab, "mariadb-dump"), "--single-transaction", "--skip-comments", cloud.database(database)]
    return run(cloud.lab, words, log="mariadb-dump")


def load(cloud: CloudLayout, database: str, sql: str) -> None:
    """Load what ``dump`` returned."""
    init = "--init-command=SET SESSION FOREIGN_KEY_CHECKS=0"
    run(cloud.lab, [*_client(cloud.lab, "mariadb"), init, cloud.database(database)], log=LOG, stdin=sql)
