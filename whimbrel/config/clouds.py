"""``whimbrel.yaml``: the named clouds and the settings of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from whimbrel.config.credentials import SecretRef
from whimbrel.config.document import Document, parse, read_text
from whimbrel.config.problem import InvalidFile, Loc, Problem, did_you_mean
from whimbrel.config.quantity import Rate
from whimbrel.config.schema import NAME_PATTERN, YamlModel, in_order, json_schema, validate
from whimbrel.errors import InvalidPlan

ENV = "WHIMBREL_CONFIG"
FILE_NAME = "whimbrel.yaml"
ANY_HOST = "*"

SECRET_KEY = re.compile(
    r"(?i)(^|_|-)(password|passwd|passphrase|secret|token|(api|private|secret|access)[_-]?key|credential)s?$"
)

CloudName = Annotated[str, Field(pattern=NAME_PATTERN)]
Site = Annotated[str, Field(pattern=NAME_PATTERN)]


class LibvirtCloud(YamlModel):
    """One libvirt daemon: a KVM (or, as a cold source, Xen) host."""

    kind: Literal["libvirt"]
    uri: str = Field(min_length=1)
    """libvirt connection address: ``qemu:///system``, ``qemu+ssh://root@host/system``, ``qemu+tls://host/system``."""
    site: Site | None = None
    """Where the storage is; movers of the same site copy. The top-level ``site`` when not given."""
    transport: Literal["unix", "tcp", "tls", "stream"] = "unix"
    """How movers reach disks by NBD: ``unix`` needs the mover on the hypervisor's host.

    ``stream`` needs no NBD but gives raw disks of stopped VMs only (mode cold); hosts other than QEMU's always do that.
    """
    tls_dir: str | None = None
    """Directory with ``ca-cert.pem``, ``client-cert.pem``, ``client-key.pem`` on the mover."""
    server_tls_dir: str | None = None
    """QEMU's directory with the server certificate on the hypervisor, when not its configured default."""
    nbd_host: str | None = None
    """Host name or address at which the hypervisor's NBD ports are reached; needed by ``tcp`` and ``tls``."""
    scratch_dir: str | None = None
    """Directory on the hypervisor for the scratch files of points in time; a default of the driver when not given."""
    runtime_dir: str | None = None
    """Directory on the hypervisor for NBD sockets (``unix``); ``/run/whimbrel`` when not given."""
    isolated_networks: tuple[str, ...] = ()
    """Networks without a way out that libvirt cannot tell as such (bridges of the host): drills may run there."""
    console_dir: str | None = None
    """Directory on the hypervisor for console logs of rebuilt VMs; the path in the VM's definition when not given."""
    virt_type: Literal["kvm", "qemu"] | None = None
    """What runs VMs that come from a cloud of another kind; ``kvm`` where the host offers it when not given."""
    user: str | None = None
    """Name for SASL authentication to libvirt."""
    credential: SecretRef | None = None
    """Where the password for SASL authentication is."""

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if parts.password is not None:
            raise ValueError("holds a password; give user and credential instead")
        if not re.fullmatch(r"[a-z]+(?:\+[a-z0-9]+)?", parts.scheme):
            raise ValueError("should be a libvirt address such as qemu:///system or qemu+ssh://root@host/system")
        return uri

    @model_validator(mode="after")
    def _complete(self) -> LibvirtCloud:
        if self.transport in {"tcp", "tls"} and not self.nbd_host:
            raise ValueError(f"transport {self.transport} needs nbd_host")
        if self.transport == "tls" and not self.tls_dir:
            raise ValueError("transport tls needs tls_dir")
        if self.credential is not None and not self.user:
            raise ValueError("credential needs user")
        return self


class CephAccess(YamlModel):
    """The way from the movers to the Ceph pools behind a cloud's volumes."""

    conf: str = "/etc/ceph/ceph.conf"
    """Ceph's configuration on the mover, which names the keyring; the same path on every mover of the site."""
    user: str = Field(default="admin", min_length=1)
    """Ceph user without ``client.``; it needs ``profile rbd`` on the monitors, the manager and the pools."""
    pools: dict[str, str] = Field(min_length=1)
    """Volume type -> Ceph pool. Volumes of other types go through a mover server, or can neither be moved nor made."""


class MoverServers(YamlModel):
    """Servers of ours in a cloud, through which go the bytes of volumes that the workers do not reach."""

    image: str = Field(min_length=1)
    """Name or id of the mover's image in Glance (docs/openstack.md says how it is made)."""
    flavor: str = Field(min_length=1)
    """Name or id: 1 vCPU, 256 MiB of memory and a local disk of 1 GiB are enough."""
    network: str = Field(min_length=1)
    """Name of a network on which the workers of the site reach servers."""
    tls_dir: str = Field(min_length=1)
    """Directory with ``ca-cert.pem``, ``client-cert.pem``, ``client-key.pem`` on every worker of the site."""
    port: Annotated[int, Field(ge=1, le=65535)] = 10809
    """TCP port that the servers listen on."""
    security_group: str | None = None
    """Security group of the servers, which lets the workers in; the project's default when not given."""
    availability_zone: str | None = None
    """Where the servers run; Nova's choice when not given."""
    max_disks: Annotated[int, Field(ge=1, le=200)] = 16
    """Most volumes of one server: a VM with more disks than this cannot be moved through it."""


class OpenStackCloud(YamlModel):
    """A project of an OpenStack cloud, described in the standard ``clouds.yaml``."""

    kind: Literal["openstack"]
    clouds_yaml_name: str = Field(min_length=1)
    """Its name in ``clouds.yaml`` (searched where openstacksdk searches, unless ``clouds_yaml`` says where it is)."""
    admin_clouds_yaml_name: str | None = Field(default=None, min_length=1)
    """An administrator's entry of the same ``clouds.yaml`` and cloud, for what the first may not: mode dual-attach.

    It manages volumes and locks servers. Its project may be another one: volumes are transferred to the tenant's.
    """
    clouds_yaml: str | None = None
    """Path of ``clouds.yaml`` on the machine of the worker."""
    region: str | None = None
    """Region, one of those that the entry lists under ``regions``; the entry's own when not given."""
    max_concurrent_calls: Annotated[int, Field(ge=1, le=256)] = 16
    """Most API calls that one worker has under way at once; further ones wait."""
    calls_per_s: Annotated[float, Field(gt=0)] | None = None
    """Most API calls that one worker begins in a second. No default: unlimited."""
    ceph: CephAccess | None = None
    """Where the bytes are; without it and without ``mover`` the cloud can be looked at, and nothing be moved."""
    mover: MoverServers | None = None
    """The way to volumes of types that ``ceph`` does not name."""
    gateway_address: str | None = Field(default=None, min_length=1)
    """IP address of the mover that compute hosts, Cinder and Ceph's clients reach; needed for ``streaming`` into it."""
    site: Site | None = None
    """Where the storage is; the top-level ``site`` when not given."""

    @field_validator("gateway_address")
    @classmethod
    def _an_address(cls, address: str | None) -> str | None:
        if address is not None:
            try:
                found = ip_address(address)
            except ValueError:
                raise ValueError("should be an IP address of the mover: it stands in the URL that hosts read") from None
            if found.is_unspecified or found.is_loopback:
                raise ValueError("should be an address that other hosts reach")
        return address

    @model_validator(mode="after")
    def _imports_need_ceph(self) -> OpenStackCloud:
        if self.gateway_address is not None and self.ceph is None:
            raise ValueError("gateway_address needs ceph: volumes are imported by Ceph")
        return self


class MemoryCloud(YamlModel):
    """A cloud inside the worker's memory, for tests and trials."""

    kind: Literal["memory"]
    site: Site | None = None
    """Where the storage is; the top-level ``site`` when not given."""


CloudConfig = Annotated[LibvirtCloud | OpenStackCloud | MemoryCloud, Field(discriminator="kind")]


def _one_limit_for_all(value: object) -> object:
    return {ANY_HOST: value} if value is not None and not isinstance(value, dict) else value


class WhimbrelConfig(YamlModel):
    """All of ``whimbrel.yaml``."""

    version: Literal[1]
    """Version of this file's form."""
    clouds: dict[CloudName, CloudConfig] = Field(min_length=1)
    """Clouds by the names that plans use."""
    site: Site = "default"
    """Site of this machine's movers, and of clouds that name none."""
    state_dir: str | None = None
    """Directory for manifests and other state of this machine; ``~/.local/state/whimbrel`` when not given."""
    host_bandwidth: Annotated[dict[str, Rate], BeforeValidator(_one_limit_for_all)] = Field(
        default_factory=dict,
        json_schema_extra={"examples": ["200MB/s", {"*": "200MB/s", "mover-1": "1Gbit/s"}]},
    )
    """Limit of all copies together on one mover host: one rate, or rates by host name with ``*`` for all others."""

    def cloud(self, name: str) -> LibvirtCloud | OpenStackCloud | MemoryCloud:
        """The cloud of this name. Raises InvalidPlan with the nearest known one."""
        if name not in self.clouds:
            raise InvalidPlan(
                f"cloud {name!r} is not in {FILE_NAME}; {did_you_mean(name, self.clouds)}",
                action=f"add the cloud to {FILE_NAME} or correct its name",
            )
        return self.clouds[name]

    def site_of(self, cloud: str) -> str:
        """Site of a cloud's storage. Raises InvalidPlan."""
        return self.cloud(cloud).site or self.site

    def sites(self) -> list[str]:
        """All sites that a cloud of this file is at, ordered."""
        return sorted({self.site_of(name) for name in self.clouds})

    def bandwidth_for(self, host: str) -> float | None:
        """Limit of all copies on a mover host, bytes per second; None for no limit."""
        return self.host_bandwidth.get(host, self.host_bandwidth.get(ANY_HOST))

    def state_path(self, environ: Mapping[str, str] | None = None) -> Path:
        """Directory of this machine's state (not made here)."""
        if self.state_dir is not None:
            return Path(self.state_dir)
        env = os.environ if environ is None else environ
        return Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "whimbrel"


def candidates(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where ``whimbrel.yaml`` is looked for, in order; the environment variable leaves no other choice."""
    env = os.environ if environ is None else environ
    if env.get(ENV):
        return [Path(env[ENV]).expanduser()]
    user = Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [Path(FILE_NAME), user / "whimbrel" / FILE_NAME, Path("/etc/whimbrel") / FILE_NAME]


def find(environ: Mapping[str, str] | None = None) -> Path:
    """The file to be used. Raises InvalidFile naming every place that was looked at."""
    places = candidates(environ)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise InvalidFile(
        [Problem(FILE_NAME, None, (), f"not found; looked at {looked}")],
        action=f"write one (docs/whimbrel-yaml.md) or point {ENV} at it",
    )


def load(path: Path | None = None) -> WhimbrelConfig:
    """Read and check the given file, or the one ``find`` finds. Raises InvalidFile with every mistake."""
    place = path or find()
    return load_text(read_text(place), str(place), place.parent)


def load_text(text: str, file: str, directory: Path) -> WhimbrelConfig:
    """The same from text; relative paths start at ``directory``. Raises InvalidFile."""
    document = parse(text, file)
    problems = _literal_secrets(document, document.data, ())
    if problems:
        raise InvalidFile(
            problems, action="store the secret elsewhere and refer to it; change it if this file was shared"
        )
    config = validate(WhimbrelConfig, document, show_values=False)
    return _absolute(config, directory)


def clouds_schema() -> str:
    """JSON schema of ``whimbrel.yaml``."""
    return json_schema(WhimbrelConfig, FILE_NAME)


def _literal_secrets(document: Document, data: Any, loc: Loc) -> list[Problem]:
    """Keys that sound secret may only hold references. The value is never repeated."""
    if isinstance(data, list):
        return [p for index, item in enumerate(data) for p in _literal_secrets(document, item, (*loc, index))]
    if not isinstance(data, dict):
        return []
    found = []
    for key, value in data.items():
        if SECRET_KEY.search(key) and value is not None and not isinstance(value, (dict, list)):
            what = "a literal secret is refused here; write credential: {env: NAME}, {file: PATH} or {keyring: ...}"
            found.append(document.problem((*loc, key), what))
        else:
            found += _literal_secrets(document, value, (*loc, key))
    return in_order(found)


def _absolute(config: WhimbrelConfig, directory: Path) -> WhimbrelConfig:
    """Paths of this machine made absolute; those on the hypervisor stay as written."""

    def place(path: str | None) -> str | None:
        return None if path is None else str((directory / Path(path).expanduser()).absolute())

    clouds: dict[str, LibvirtCloud | OpenStackCloud | MemoryCloud] = {}
    for name, cloud in config.clouds.items():
        if isinstance(cloud, LibvirtCloud):
            ref = cloud.credential
            if ref is not None and ref.file is not None:
                ref = ref.model_copy(update={"file": place(ref.file)})
            clouds[name] = cloud.model_copy(update={"tls_dir": place(cloud.tls_dir), "credential": ref})
        elif isinstance(cloud, OpenStackCloud):
            ceph = cloud.ceph
            if ceph is not None:
                ceph = ceph.model_copy(update={"conf": place(ceph.conf)})
            mover = cloud.mover
            if mover is not None:
                mover = mover.model_copy(update={"tls_dir": place(mover.tls_dir)})
            update = {"clouds_yaml": place(cloud.clouds_yaml), "ceph": ceph, "mover": mover}
            clouds[name] = cloud.model_copy(update=update)
        else:
            clouds[name] = cloud
    return config.model_copy(update={"clouds": clouds, "state_dir": place(config.state_dir)})
