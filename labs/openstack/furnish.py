"""What a cloud is given once it runs: a tenant, quotas, volume types, flavors, networks, the guest's image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openstack.connection import Connection

from labs.openstack.keystone import identity_of
from labs.openstack.layout import MAC_PREFIX, PASSWORD, CloudLayout
from whimbrel.moverimage import upload

TENANT = "shop"
MEMBER = "member"
NETWORK = "wire"
DRILL_NETWORK = "drill"
IMAGE = "lab-guest"
FLAVORS = {"lab.small": (160, 1), "lab.medium": (256, 2), "lab.large": (512, 2)}
"""Name -> (MiB, vCPUs); no ephemeral disk, servers boot from volumes."""
FILE = "lab_file"
"""On images: name of the file in the lab's cache, which tells one version from another."""
MOVER_IMAGE = upload.IMAGE_NAME
MOVER_FLAVOR = ("lab.mover", 256, 1, 1)
"""Name, MiB, vCPUs, GiB of the local disk that a server from an image needs."""
COMPUTE_QUOTA = {"instances": 12, "cores": 20, "ram": 6144}
VOLUME_QUOTA = {"volumes": 30, "gigabytes": 200, "snapshots": 30}
PORT_QUOTA = 60


@dataclass(frozen=True)
class Address:
    """A network identity the guest derives from its MAC: the last octet of both is the same number."""

    mac: str
    ip: str


def address(cloud: CloudLayout, number: int) -> Address:
    """Return address ``number`` (10 to 249) of the provider network, with a MAC of this cloud's space."""
    if not 10 <= number < 250:
        raise ValueError(f"address {number}: 10 to 249")
    mac = f"{MAC_PREFIX[cloud.name]}:{cloud.lab.index:02x}:00:{number:02x}"
    return Address(mac, f"{cloud.lab.guest_prefix}.{number}")


def volume_types(cloud: CloudLayout) -> dict[str, str]:
    """Return volume type -> backend name: the cloud's own, and the shared one."""
    return {f"rbd-{cloud.name}": f"rbd-{cloud.name}", "shared": "shared"}


def furnish(cloud: CloudLayout, connection: Connection, image: Path, mover: Path) -> None:
    """Have everything in place; what is there already is left alone, quotas included."""
    _ensure_tenant(connection)
    _ensure_types(cloud, connection)
    for name, (ram_mib, vcpus) in FLAVORS.items():
        if connection.compute.find_flavor(name) is None:
            connection.compute.create_flavor(name=name, ram=ram_mib, vcpus=vcpus, disk=0)
    name, ram_mib, vcpus, disk_gib = MOVER_FLAVOR
    if connection.compute.find_flavor(name) is None:
        connection.compute.create_flavor(name=name, ram=ram_mib, vcpus=vcpus, disk=disk_gib)
    _ensure_network(cloud, connection, NETWORK, physical="wire", gateway=f"{cloud.lab.guest_prefix}.1")
    _ensure_network(cloud, connection, DRILL_NETWORK, physical="drill", gateway=None)
    guest = {"hw_disk_bus": "virtio", "hw_vif_model": "virtio", "os_type": "linux"}
    _ensure_image(connection, IMAGE, image, guest)
    _ensure_image(connection, MOVER_IMAGE, mover, upload.PROPERTIES)


def _ensure_tenant(connection: Connection) -> None:
    identity = identity_of(connection)
    if identity.find_project(TENANT) is None:
        project = identity.create_project(name=TENANT, domain_id="default")
        connection.set_compute_quotas(project.id, **COMPUTE_QUOTA)
        connection.set_volume_quotas(project.id, **VOLUME_QUOTA)
        connection.set_network_quotas(project.id, port=PORT_QUOTA)
    project = identity.find_project(TENANT, ignore_missing=False)
    user = identity.find_user(MEMBER) or identity.create_user(
        name=MEMBER, password=PASSWORD, domain_id="default", default_project_id=project.id
    )
    admin = identity.find_user("admin", ignore_missing=False)
    for one, role in ((user, "member"), (admin, "admin")):
        identity.assign_project_role_to_user(project, one, identity.find_role(role, ignore_missing=False))


def _ensure_types(cloud: CloudLayout, connection: Connection) -> None:
    present = {kind.name for kind in connection.block_storage.types()}
    for name, backend in volume_types(cloud).items():
        if name not in present:
            connection.block_storage.create_type(name=name, extra_specs={"volume_backend_name": backend})


def _ensure_network(
    cloud: CloudLayout, connection: Connection, name: str, *, physical: str, gateway: str | None
) -> None:
    api = connection.network
    owner = identity_of(connection).find_project(TENANT, ignore_missing=False)
    network = api.find_network(name) or api.create_network(
        name=name,
        project_id=owner.id,  # only a network's owner may fix MAC and IP of a port
        provider_network_type="flat",
        provider_physical_network=physical,
        is_shared=True,
        is_port_security_enabled=False,
    )
    if api.find_subnet(name) is None:
        cidr = f"{cloud.lab.guest_prefix}.0/24"
        # the pool is for ports without a wish; half of it per cloud, as the wire is the same
        first = 100 if MAC_PREFIX[cloud.name] == MAC_PREFIX["a"] else 180
        pool = {"start": f"{cloud.lab.guest_prefix}.{first}", "end": f"{cloud.lab.guest_prefix}.{first + 69}"}
        api.create_subnet(
            network_id=network.id,
            project_id=owner.id,
            name=name,
            ip_version=4,
            cidr=cidr,
            gateway_ip=gateway,
            enable_dhcp=False,
            allocation_pools=[pool],
        )


def _ensure_image(connection: Connection, name: str, file: Path, properties: dict[str, Any]) -> None:
    """An image of another file, from an earlier version, is replaced."""
    found = connection.image.find_image(name)
    if found is not None and (found.properties or {}).get(FILE) in {None, file.name}:
        return
    if found is not None:
        connection.image.delete_image(found.id)
    connection.create_image(
        name,
        filename=str(file),
        disk_format="raw",
        container_format="bare",
        visibility="public",
        validate_checksum=False,
        wait=True,
        **properties | {FILE: file.name},
    )
