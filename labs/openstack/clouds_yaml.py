"""clouds.yaml for the lab: per cloud one entry for its admin and one for the tenant's member."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from labs.openstack.furnish import MEMBER, TENANT
from labs.openstack.layout import PASSWORD, CloudLayout


def text(clouds: Sequence[CloudLayout]) -> str:
    """Return the file: ``a`` (admin), ``a-tenant-admin`` (admin in the tenant's project), ``a-member``, and so on."""
    accounts = (("", "admin", "admin"), ("-tenant-admin", "admin", TENANT), ("-member", MEMBER, TENANT))
    entries = {}
    for cloud in clouds:
        for suffix, user, project in accounts:
            entries[cloud.name + suffix] = {
                "auth": {
                    "auth_url": f"{cloud.url('keystone')}/v3",
                    "username": user,
                    "password": PASSWORD,
                    "project_name": project,
                    "user_domain_id": "default",
                    "project_domain_id": "default",
                },
                "region_name": cloud.region,
            }
    return yaml.safe_dump({"clouds": entries}, sort_keys=False)


def write(path: Path, clouds: Sequence[CloudLayout]) -> None:
    """Write the file; entries of clouds that others have brought up in the same lab stay."""
    known = yaml.safe_load(path.read_text())["clouds"] if path.exists() else {}
    entries = {**known, **yaml.safe_load(text(clouds))["clouds"]}
    path.write_text(yaml.safe_dump({"clouds": entries}, sort_keys=False))
