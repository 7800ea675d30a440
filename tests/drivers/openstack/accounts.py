"""Accounts of the lab made for one test: a user, an entry in a clouds.yaml of its own, and the cloud seen by it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from drivers.ceph import RbdImages
from drivers.openstack import OpenStackCloud
from labs.openstack import CloudHandle

KEYSTONE_DOMAIN = {"user_domain_id": "default", "project_domain_id": "default"}


def seen_by(lab: CloudHandle, entry: str, config: Path | None = None, **access: Any) -> OpenStackCloud:
    """The cloud as an entry of clouds.yaml sees it, with the lab's way to Ceph."""
    given = {
        "images": RbdImages(conf=str(lab.ceph_conf), user=lab.ceph_user),
        "pools": {lab.volume_type: lab.pool, lab.shared_type: lab.shared_pool},
    }
    return OpenStackCloud("lab", clouds_yaml_name=entry, config_file=config or lab.clouds_yaml, **{**given, **access})


def member_auth(lab: CloudHandle, account: str = "-member") -> dict[str, Any]:
    """The ``auth`` of one of the lab's own entries."""
    known = yaml.safe_load(lab.clouds_yaml.read_text())["clouds"]
    return dict(known[lab.name + account]["auth"])


def write_entry(lab: CloudHandle, path: Path, auth: dict[str, Any], **more: Any) -> Path:
    """A clouds.yaml with the one entry ``mine``."""
    entry = {"auth": auth, "region_name": lab.layout.region, **more}
    entry = {key: value for key, value in entry.items() if value is not None}
    path.write_text(yaml.safe_dump({"clouds": {"mine": entry}}))
    return path


@contextmanager
def user_with(lab: CloudHandle, role: str, path: Path) -> Iterator[Path]:
    """A clouds.yaml whose entry ``mine`` is a new user with one role in the tenant's project; removed at the end."""
    admin = lab.connect()
    identity: Any = admin.identity
    password = secrets.token_urlsafe(16)
    user = identity.create_user(name=f"osprecheck-{secrets.token_hex(4)}", password=password, domain_id="default")
    try:
        project = identity.find_project(lab.tenant, ignore_missing=False)
        identity.assign_project_role_to_user(project, user, identity.find_role(role, ignore_missing=False))
        auth = {
            "auth_url": member_auth(lab)["auth_url"],
            "username": user.name,
            "password": password,
            "project_name": lab.tenant,
            **KEYSTONE_DOMAIN,
        }
        yield write_entry(lab, path, auth)
    finally:
        identity.delete_user(user)
        admin.close()
