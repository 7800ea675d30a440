"""Databases of a cloud: each schema is migrated once and its dump kept, by lock file, for the next cloud and lab."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.layout import cache_dir
from labs.openstack import mariadb, nova
from labs.openstack.layout import CloudLayout, venv_dir
from labs.openstack.packages import lock_digest
from labs.openstack.processes import run


@dataclass(frozen=True)
class Schema:
    """One migration, and the databases that have its result."""

    service: str
    databases: tuple[str, ...]
    command: str
    config: str


SCHEMAS = (  # the longest first
    Schema("neutron", ("neutron",), "neutron-db-manage upgrade heads", "neutron.conf"),
    Schema("nova", ("nova", "nova_cell0"), "nova-manage db sync --local_cell", "nova.conf"),
    Schema("cinder", ("cinder",), "cinder-manage db sync", "cinder.conf"),
    Schema("keystone", ("keystone",), "keystone-manage db_sync", "keystone.conf"),
    Schema("nova", ("nova_api",), "nova-manage api_db sync", "nova.conf"),
    Schema("glance", ("glance",), "glance-manage db_sync", "glance-api.conf"),
    Schema("placement", ("placement",), "placement-manage db sync", "placement.conf"),
)


def _dump_of(database: str) -> Path:
    return cache_dir() / f"openstack-{lock_digest()}" / f"{database}.sql"


def ensure(cloud: CloudLayout) -> None:
    """Have all databases of ``cloud`` with their tables. Without dumps 40 s of two cores, with them 5 s."""
    done = cloud.root / "databases-made"
    if done.exists():
        return
    mariadb.ensure_databases(cloud)
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(_fill, cloud, schema) for schema in SCHEMAS]:
            future.result()
    nova.ensure_cells(cloud)
    done.touch()


def _fill(cloud: CloudLayout, schema: Schema) -> None:
    first, *others = schema.databases
    kept = _dump_of(first)
    if kept.exists():
        others = list(schema.databases)
    else:
        program, *words = schema.command.split()
        config = str(cloud.etc(schema.service) / schema.config)
        command = [f"{venv_dir()}/bin/{program}", "--config-file", config, *words]
        run(cloud.lab, command, log=f"{cloud.name}-{program}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(mariadb.dump(cloud, first))
        partial.replace(kept)
    for database in others:
        mariadb.load(cloud, database, kept.read_text())
