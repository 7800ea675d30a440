"""whimbrel.yaml: where it is found, what it says, and one exact line for each way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.config.clouds import (
    CephAccess,
    LibvirtCloud,
    MemoryCloud,
    MoverServers,
    OpenStackCloud,
    WhimbrelConfig,
    candidates,
    find,
    load,
    load_text,
)
from whimbrel.config.credentials import KeyringEntry, SecretRef
from whimbrel.config.problem import InvalidFile
from whimbrel.errors import InvalidPlan

FULL = """\
version: 1
site: north
state_dir: state
host_bandwidth: {"*": 200MB/s, mover-1: 1Gbit/s}
clouds:
  kvm-a:
    kind: libvirt
    uri: qemu:///system
  kvm-b:
    kind: libvirt
    uri: qemu+tls://b.example/system
    site: south
    transport: tls
    tls_dir: pki/b
    server_tls_dir: /etc/pki/qemu
    nbd_host: b.example
    scratch_dir: /var/lib/scratch
    console_dir: /var/log/consoles
    user: whimbrel
    credential: {file: secrets/b}
  os:
    kind: openstack
    clouds_yaml_name: prod
    clouds_yaml: clouds.yaml
    region: north-1
    max_concurrent_calls: 4
    calls_per_s: 2.5
    ceph: {conf: ceph/ceph.conf, user: mover, pools: {fast: volumes-ssd}}
    mover: {image: mover, flavor: tiny, network: wire, tls_dir: pki/movers, security_group: nbd, max_disks: 8}
  trial:
    kind: memory
"""


def made(text: str = FULL) -> WhimbrelConfig:
    return load_text(text, "whimbrel.yaml", Path("/etc/whimbrel"))


def test_every_key_arrives_and_relative_paths_start_at_the_file() -> None:
    config = made()
    assert config.clouds == {
        "kvm-a": LibvirtCloud(kind="libvirt", uri="qemu:///system"),
        "kvm-b": LibvirtCloud(
            kind="libvirt",
            uri="qemu+tls://b.example/system",
            site="south",
            transport="tls",
            tls_dir="/etc/whimbrel/pki/b",
            server_tls_dir="/etc/pki/qemu",
            nbd_host="b.example",
            scratch_dir="/var/lib/scratch",
            console_dir="/var/log/consoles",
            user="whimbrel",
            credential=SecretRef(file="/etc/whimbrel/secrets/b"),
        ),
        "os": OpenStackCloud(
            kind="openstack",
            clouds_yaml_name="prod",
            clouds_yaml="/etc/whimbrel/clouds.yaml",
            region="north-1",
            max_concurrent_calls=4,
            calls_per_s=2.5,
            ceph=CephAccess(conf="/etc/whimbrel/ceph/ceph.conf", user="mover", pools={"fast": "volumes-ssd"}),
            mover=MoverServers(
                image="mover",
                flavor="tiny",
                network="wire",
                tls_dir="/etc/whimbrel/pki/movers",
                security_group="nbd",
                max_disks=8,
            ),
        ),
        "trial": MemoryCloud(kind="memory"),
    }
    assert config.state_path() == Path("/etc/whimbrel/state")
    assert config.site_of("kvm-a") == "north"
    assert config.site_of("kvm-b") == "south"
    assert config.sites() == ["north", "south"]
    assert config.bandwidth_for("mover-1") == 125e6
    assert config.bandwidth_for("mover-2") == 200e6


def test_one_bandwidth_for_all_hosts() -> None:
    config = made("version: 1\nclouds: {m: {kind: memory}}\nhost_bandwidth: 10MB/s\n")
    assert config.bandwidth_for("any") == 10e6
    assert made("version: 1\nclouds: {m: {kind: memory}}\n").bandwidth_for("any") is None


def test_the_default_state_directory_follows_xdg() -> None:
    config = made("version: 1\nclouds: {m: {kind: memory}}\n")
    assert config.state_path({"XDG_STATE_HOME": "/s"}) == Path("/s/whimbrel")
    assert config.state_path({}) == Path.home() / ".local/state/whimbrel"


def test_an_unknown_cloud_names_the_nearest() -> None:
    with pytest.raises(InvalidPlan, match=r"cloud 'kvm_a' is not in whimbrel.yaml; did you mean kvm-a\?"):
        made().cloud("kvm_a")


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert candidates({"XDG_CONFIG_HOME": "/c"}) == [
        Path("whimbrel.yaml"), Path("/c/whimbrel/whimbrel.yaml"), Path("/etc/whimbrel/whimbrel.yaml"),
    ]  # fmt: skip
    user = tmp_path / "config" / "whimbrel" / "whimbrel.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("version: 1\nclouds: {u: {kind: memory}}\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert find(environ) == user
    Path("whimbrel.yaml").write_text("version: 1\nclouds: {here: {kind: memory}}\n")
    assert find(environ) == Path("whimbrel.yaml")
    monkeypatch.setenv("WHIMBREL_CONFIG", str(user))
    assert list(load().clouds) == ["u"]
    with pytest.raises(InvalidFile) as caught:
        find({"WHIMBREL_CONFIG": "/absent/w.yaml"})
    assert str(caught.value.problems[0]) == "whimbrel.yaml: not found; looked at /absent/w.yaml"
    assert "docs/whimbrel-yaml.md" in caught.value.action


def libvirt(**keys: str) -> str:
    rows = {"kind": "libvirt", "uri": "qemu:///system", **keys}
    return "version: 1\nclouds:\n  a:\n" + "".join(f"    {key}: {value}\n" for key, value in rows.items())


BAD: list[tuple[str, str, list[str]]] = [
    ("no clouds", "version: 1\nclouds: {}\n", ["w.yaml:2: clouds: is empty"]),
    ("kind unknown", "version: 1\nclouds: {a: {kind: xen}}\n",
     ["w.yaml:2: clouds.a: kind should be one of 'libvirt', 'openstack', 'memory'"]),
    ("kind missing", "version: 1\nclouds: {a: {uri: x}}\n", ["w.yaml:2: clouds.a: kind is missing"]),
    ("key of the kind", libvirt(scratchdir="/x"),
     ["w.yaml:6: clouds.a.scratchdir: unknown key; did you mean scratch_dir?"]),
    ("key of another kind", "version: 1\nclouds:\n  a:\n    kind: memory\n    uri: x\n",
     ["w.yaml:5: clouds.a.uri: unknown key; known: kind, site"]),
    ("no uri", "version: 1\nclouds: {a: {kind: libvirt}}\n", ["w.yaml:2: clouds.a.uri: is missing"]),
    ("not an address", libvirt(uri="/var/run/sock"),
     ["w.yaml:5: clouds.a.uri: should be a libvirt address such as qemu:///system or qemu+ssh://root@host/system"]),
    ("tcp without host", libvirt(transport="tcp"), ["w.yaml:3: clouds.a: transport tcp needs nbd_host"]),
    ("tls without directory", libvirt(transport="tls", nbd_host="h"),
     ["w.yaml:3: clouds.a: transport tls needs tls_dir"]),
    ("two references", libvirt(user="u", credential="{env: A, file: b}"),
     ["w.yaml:7: clouds.a.credential: needs exactly one of env, file, keyring"]),
    ("no reference", libvirt(user="u", credential="{}"),
     ["w.yaml:7: clouds.a.credential: needs exactly one of env, file, keyring"]),
    ("credential without user", libvirt(credential="{env: A}"), ["w.yaml:3: clouds.a: credential needs user"]),
    ("name of a cloud", "version: 1\nclouds: {a/b: {kind: memory}}\n",
     ["w.yaml:2: clouds.a/b: should be letters, digits, dots, dashes and underscores only"]),
    ("bandwidth", "version: 1\nclouds: {a: {kind: memory}}\nhost_bandwidth: 5\n",
     ["w.yaml:3: host_bandwidth: is no rate: '5'; write for example 50MB/s or 400Mbit/s"]),
    ("top-level key", "version: 1\nclouds: {a: {kind: memory}}\nstatedir: x\n",
     ["w.yaml:3: statedir: unknown key; did you mean state_dir?"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), [(text, lines) for _, text, lines in BAD], ids=[name for name, _, _ in BAD])
def test_each_mistake_has_one_line(text: str, lines: list[str]) -> None:
    with pytest.raises(InvalidFile) as caught:
        load_text(text, "w.yaml", Path("/"))
    assert [str(problem) for problem in caught.value.problems] == lines


SECRET = "hunter2-do-not-show"


@pytest.mark.parametrize(
    "key",
    ["password", "Password", "sasl_password", "token", "api_key", "private-key", "secret", "credential", "passphrase"],
)
def test_a_literal_secret_is_refused_and_never_repeated(key: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        load_text(libvirt(**{key: SECRET}), "w.yaml", Path("/"))
    line = str(caught.value.problems[0])
    assert line.startswith(
        f"w.yaml:6: clouds.a.{key}: a literal secret is refused here; write credential: {{env: NAME}}"
    )
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.action}"


@pytest.mark.parametrize(
    "text",
    [
        libvirt(uri=f"qemu+tcp://u:{SECRET}@h/system"),
        libvirt(user="u", credential=f"{{env: {SECRET}}}"),
        libvirt(transport=SECRET),
        libvirt(pasword=f"[{SECRET}]"),
        libvirt(site=f"{SECRET}/"),
    ],
)
def test_what_was_written_is_not_echoed(text: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        load_text(text, "w.yaml", Path("/"))
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_a_keyring_reference() -> None:
    config = made(libvirt(user="u", credential="{keyring: {service: libvirt, user: u}}"))
    cloud = config.clouds["a"]
    assert isinstance(cloud, LibvirtCloud)
    assert cloud.credential == SecretRef(keyring=KeyringEntry(service="libvirt", user="u"))


def test_streams_need_no_address_of_their_own() -> None:
    text = "version: 1\nclouds: {a: {kind: libvirt, uri: 'xen+ssh://root@x/', transport: stream}}\n"
    cloud = made(text).cloud("a")
    assert isinstance(cloud, LibvirtCloud)
    assert (cloud.transport, cloud.nbd_host) == ("stream", None)
