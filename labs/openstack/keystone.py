"""Keystone: identities, and the catalogue that names the other services."""

from __future__ import annotations

import base64
import os
import time

import openstack
from openstack.connection import Connection
from openstack.identity.v3._proxy import Proxy

from labs.openstack.layout import PASSWORD, CloudLayout, venv_dir
from labs.openstack.processes import Daemon, run
from labs.openstack.template import service_conf, write
from labs.openstack.wsgi import api

CATALOGUE = (  # account, type of service, path under its URL
    ("placement", "placement", ""),
    ("glance", "image", ""),
    ("cinder", "block-storage", "/v3"),
    ("nova", "compute", "/v2.1"),
    ("neutron", "network", ""),
)


def write_config(cloud: CloudLayout) -> None:
    """Write keystone.conf and, once, the keys that tokens and credentials are made with."""
    text = service_conf(cloud, "keystone", "common.conf") + service_conf(cloud, "keystone", "keystone.conf")
    write(cloud.etc("keystone") / "keystone.conf", text)
    for repository in ("fernet-keys", "credential-keys"):
        for number in ("0", "1"):
            key = cloud.var("keystone") / repository / number
            if not key.exists():
                write(key, base64.urlsafe_b64encode(os.urandom(32)).decode()).chmod(0o600)


def daemons(cloud: CloudLayout) -> list[Daemon]:
    """Return the API."""
    etc = str(cloud.etc("keystone"))
    environment = {"OS_KEYSTONE_CONFIG_DIR": etc, "OS_KEYSTONE_CONFIG_FILES": "keystone.conf"}
    return [api(cloud, "keystone", "keystone.wsgi.api", **environment)]


def bootstrap(cloud: CloudLayout) -> None:
    """Have the admin's account and region; 4 s."""
    url = f"{cloud.url('keystone')}/v3"
    words = [f"{venv_dir()}/bin/keystone-manage", "--config-file", str(cloud.etc("keystone") / "keystone.conf")]
    words += ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", cloud.region]
    for interface in ("admin", "internal", "public"):
        words += [f"--bootstrap-{interface}-url", url]
    run(cloud.lab, words, log=f"{cloud.name}-keystone-manage")


def connect(cloud: CloudLayout, *, user: str = "admin", project: str = "admin", password: str = PASSWORD) -> Connection:
    """Return a connection of openstacksdk."""
    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth_url=f"{cloud.url('keystone')}/v3",
        username=user,
        password=password,
        project_name=project,
        user_domain_id="default",
        project_domain_id="default",
        region_name=cloud.region,
        block_storage_api_version="3",
    )


def identity_of(connection: Connection) -> Proxy:
    """Return the identity API, which is always the third here."""
    proxy = connection.identity
    assert isinstance(proxy, Proxy)
    return proxy


def ensure_catalogue(cloud: CloudLayout) -> None:
    """Have the services' accounts, and their endpoints."""
    identity = identity_of(connect(cloud))
    project = identity.find_project("service") or identity.create_project(name="service", domain_id="default")
    roles = {role.name: role for role in identity.roles()}
    users = {user.name for user in identity.users()}
    endpoints = {endpoint.url for endpoint in identity.endpoints()}
    services = {service.type: service for service in identity.services()}
    for name, kind, path in CATALOGUE:
        if name not in users:
            user = identity.create_user(
                name=name, password=PASSWORD, domain_id="default", default_project_id=project.id
            )
            for role in ("admin", "service"):
                identity.assign_project_role_to_user(project, user, roles[role])
        service = services.get(kind) or identity.create_service(name=name, type=kind)
        url = f"{cloud.url(name)}{path}"
        if url not in endpoints:
            for interface in ("public", "internal", "admin"):
                identity.create_endpoint(service_id=service.id, interface=interface, url=url, region_id=cloud.region)


def admits(cloud: CloudLayout, timeout_s: float = 60) -> None:
    """Wait until keystone gives the admin a token; raises what it said last."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connect(cloud).authorize()
            return
        except openstack.exceptions.SDKException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
