"""The OpenStack lab on paper: layout, templates, boot record, lock file; nothing is started."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from labs.kvm.errors import LabError
from labs.openstack import cinder, clouds_yaml, furnish, glance, keystone, neutron, nova, placement
from labs.openstack.guest_image import BASE_MIB, command_line
from labs.openstack.lab import SERVICES, OpenStackLab
from labs.openstack.layout import CLOUDS, PORTS, OpenStackLayout
from labs.openstack.libvirtd import without_tls
from labs.openstack.namespace import choose_index
from labs.openstack.packages import LOCK_FILE
from labs.openstack.processes import pid_of
from labs.openstack.template import TEMPLATES, render

CONFIGS = {
    "keystone": "keystone.conf",
    "placement": "placement.conf",
    "glance": "glance-api.conf",
    "cinder": "cinder.conf",
    "nova": "nova.conf",
    "neutron": "neutron.conf",
}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStackLayout:
    paste = tmp_path / "venv/etc/nova/api-paste.ini"
    paste.parent.mkdir(parents=True)
    paste.write_text("[pipeline:main]\n")
    monkeypatch.setenv("WHIMBREL_OPENSTACK_VENV", str(tmp_path / "venv"))
    return OpenStackLayout(tmp_path / "lab", 7)


def config(layout: OpenStackLayout, cloud: str, service: str) -> configparser.ConfigParser:
    # a service's [DEFAULT] stands in two parts of the file, as oslo.config allows
    parser = configparser.ConfigParser(strict=False, interpolation=None, default_section="none")
    assert parser.read(layout.cloud(cloud).etc(service) / CONFIGS[service])
    return parser


@pytest.fixture
def written(layout: OpenStackLayout) -> OpenStackLayout:
    for name in CLOUDS:
        for service in SERVICES:
            service.write_config(layout.cloud(name))
    return layout


# --- layout ----------------------------------------------------------------------------------------------------------


def test_sockets_stay_short_however_long_the_root(tmp_path: Path) -> None:
    layout = OpenStackLayout(tmp_path / ("x" * 200), 254)
    cloud = layout.cloud("b")
    for path in (layout.mysql_socket, layout.ovs_run / "ovs-vswitchd.ctl", cloud.libvirt_run / "libvirt-sock-ro"):
        assert len(str(path)) < 80
    assert len(layout.device) <= 15


def test_two_checkouts_share_nothing(tmp_path: Path) -> None:
    one, other = (OpenStackLayout(tmp_path / name, index) for name, index in (("one", 1), ("other", 2)))
    for attribute in ("key", "runtime", "namespace", "device", "host_address", "shared_address", "guest_prefix"):
        assert getattr(one, attribute) != getattr(other, attribute)


def test_two_clouds_share_no_address_and_no_name(layout: OpenStackLayout) -> None:
    a, b = map(layout.cloud, CLOUDS)
    for attribute in ("root", "address", "region", "pool", "hostname", "libvirt_uri", "ceph_conf", "ceph_user"):
        assert getattr(a, attribute) != getattr(b, attribute)
    assert len({a.url(service) for service in PORTS} | {b.url(service) for service in PORTS}) == 2 * len(PORTS)
    with pytest.raises(LabError, match="cloud 'c'"):
        layout.cloud("c")


def test_a_network_number_that_is_taken_is_passed_over() -> None:
    first = choose_index("00000005", ())
    assert choose_index("00000005", {first}) == first + 1
    assert choose_index("ffffffff", set(range(2, 255))) == 1
    with pytest.raises(LabError, match="end other labs"):
        choose_index("00000005", set(range(1, 255)))


def test_addresses_tell_the_cloud_and_the_number(layout: OpenStackLayout) -> None:
    a, b = (furnish.address(layout.cloud(name), 42) for name in CLOUDS)
    assert (a.mac, a.ip) == ("fa:16:3e:07:00:2a", "198.19.7.42")
    assert (b.mac, b.ip) == ("fa:16:3f:07:00:2a", a.ip)
    with pytest.raises(ValueError, match="10 to 249"):
        furnish.address(layout.cloud("a"), 250)


# --- templates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(TEMPLATES.iterdir()), ids=lambda path: path.name)
def test_a_template_without_its_values_is_refused(path: Path) -> None:
    names = set(re.findall(r"(?<!\$)\$(\w+)", path.read_text()))
    if names:
        with pytest.raises(KeyError):
            render(path.name)
    text = render(path.name, **dict.fromkeys(names, "VALUE"))
    assert "$" not in text.replace("$cluster", "").replace("$name", "")


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("service", CONFIGS)
def test_a_service_knows_its_own_cloud_only(written: OpenStackLayout, cloud: str, service: str) -> None:
    other = written.cloud(next(name for name in CLOUDS if name != cloud))
    text = (written.cloud(cloud).etc(service) / CONFIGS[service]).read_text()
    for foreign in (other.address, str(other.root), other.pool, other.region, other.ceph_user, f"/{other.name}_"):
        assert foreign not in text


def test_cinder_has_its_own_pool_and_the_shared_one(written: OpenStackLayout) -> None:
    conf = config(written, "a", "cinder")
    assert conf["DEFAULT"]["enabled_backends"] == "own,shared"
    assert (conf["own"]["rbd_pool"], conf["shared"]["rbd_pool"]) == ("volumes-a", "shared")
    assert config(written, "b", "cinder")["shared"]["rbd_pool"] == "shared"
    secret = config(written, "a", "nova")["libvirt"]["rbd_secret_uuid"]
    assert conf["own"]["rbd_secret_uuid"] == conf["shared"]["rbd_secret_uuid"] == secret


def test_mac_spaces_are_apart(written: OpenStackLayout) -> None:
    bases = {config(written, cloud, "neutron")["DEFAULT"]["base_mac"] for cloud in CLOUDS}
    assert bases == {"fa:16:3e:00:00:00", "fa:16:3f:00:00:00"}


def test_privsep_never_asks_sudo(written: OpenStackLayout) -> None:
    for service in ("cinder", "nova", "neutron"):
        conf = config(written, "a", service)
        helpers = [conf[name]["helper_command"] for name in conf.sections() if "helper_command" in conf[name]]
        assert len(helpers) >= 2
        assert all(
            helper.endswith(f"--config-file {written.cloud('a').etc(service)}/{service}.conf") for helper in helpers
        )


def test_keys_survive_a_second_writing(written: OpenStackLayout) -> None:
    key = written.cloud("a").var("keystone") / "fernet-keys/1"
    before = key.read_text()
    keystone.write_config(written.cloud("a"))
    assert key.read_text() == before
    assert key.stat().st_mode & 0o077 == 0


def test_a_compute_host_without_certificates_names_none() -> None:
    assert without_tls('user = "root"\nnbd_tls_x509_cert_dir = "x"\n') == 'user = "root"\n'


@pytest.mark.parametrize("service", [keystone, placement, glance, cinder, nova, neutron])
def test_every_service_names_its_daemons(written: OpenStackLayout, service: ModuleType) -> None:
    for daemon in service.daemons(written.cloud("a")):
        assert daemon.name.startswith("a-")
        assert daemon.command[0].startswith("/")


# --- the lab as an object --------------------------------------------------------------------------------------------


def test_a_lab_that_was_never_up_writes_nothing(tmp_path: Path) -> None:
    lab = OpenStackLab(tmp_path / "lab", ("a",))
    assert all(state.pid is None and not state.healthy for state in lab.status())
    assert not (tmp_path / "lab").exists()
    lab.down()
    with pytest.raises(LabError, match=r"no service 'a-nova'; there are .*a-nova-api"):
        lab.stop("a-nova")


def test_a_recorded_pid_of_a_stranger_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labs.openstack.layout.RUNTIME_BASE", tmp_path / "run")
    layout = OpenStackLayout(tmp_path / "lab", 7)
    pidfile = layout.runtime / "pid" / "mariadb"
    pidfile.parent.mkdir(parents=True)
    pidfile.write_text("1")
    assert pid_of(layout, "mariadb") is None


def test_clouds_yaml_has_admin_and_member(layout: OpenStackLayout) -> None:
    entries = yaml.safe_load(clouds_yaml.text([layout.cloud("a"), layout.cloud("b")]))["clouds"]
    assert set(entries) == {"a", "a-tenant-admin", "a-member", "b", "b-tenant-admin", "b-member"}
    assert entries["b-member"]["auth"]["username"] == "member"
    assert entries["b-member"]["auth"]["project_name"] == entries["b-tenant-admin"]["auth"]["project_name"] == "shop"
    assert entries["a"]["region_name"] != entries["b"]["region_name"]


def test_a_lab_of_one_cloud_keeps_the_entries_of_the_other(layout: OpenStackLayout, tmp_path: Path) -> None:
    path = tmp_path / "clouds.yaml"
    clouds_yaml.write(path, [layout.cloud("a"), layout.cloud("b")])
    both = path.read_text()
    clouds_yaml.write(path, [layout.cloud("a")])
    assert path.read_text() == both


# --- image, lock file ------------------------------------------------------------------------------------------------


def test_the_guest_is_told_where_its_data_begins_and_its_network() -> None:
    assert f"wb.base={BASE_MIB} wb.net=198.19.7" in command_line("198.19.7")


def test_every_locked_package_has_its_hashes_and_every_wish_is_kept() -> None:
    text = LOCK_FILE.read_text().replace("\\\n", "")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(pins) > 150
    assert all(re.match(r"[a-z0-9.-]+==\S+( ; .*?)?( +--hash=sha256:[0-9a-f]{64})+$", pin) for pin in pins)
    wishes = LOCK_FILE.with_name("requirements.in").read_text().splitlines()
    for wish in (line for line in wishes if line and not line.startswith("#")):
        assert any(pin.startswith(wish) for pin in pins), wish
