"""clouds.yaml for the lab: per cloud one entry for its admin and one for the tenant's member."""

from __future__ import annotations

from collections.abc import Sequence

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
