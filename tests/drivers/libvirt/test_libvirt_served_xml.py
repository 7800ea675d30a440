"""Served disks in XML: written, recognised, taken back."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from drivers.libvirt import domain_xml, served_xml, tag
from drivers.libvirt.session_xml import Base, SessionDisk, session_xml
from whimbrel.errors import Unsupported
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths
from whimbrel.model.vm import DiskFormat, DiskSpec, TargetDisk, VolumeRef

PLAIN = """<domain><devices><disk type='file' device='disk'>
<driver name='qemu' type='raw' cache='none' error_policy='report'/><source file='/pool/v'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>"""
UNIX = NbdEndpoint(unix_path="/run/s", export="vda")
TLS = NbdEndpoint(host="h", port=7, export="e", tls=TlsPaths(directory="/d", server_name="n"))
COPYING = """<domain><devices><disk type='file'><source file='/pool/in'/><backingStore type='network'>
<source protocol='nbd' name='vda'/></backingStore><mirror type='file' job='copy' ready='yes'>
<source file='/pool/out'/></mirror><target dev='vda'/></disk></devices></domain>"""


def capabilities(*models: str) -> str:
    """A host's answer with these security models."""
    return f"<capabilities><host><cpu/>{''.join(models)}</host></capabilities>"


SELINUX = (
    "<secmodel><model>selinux</model><doi>0</doi><baselabel type='kvm'>system_u:system_r:s0</baselabel></secmodel>"
)
DAC = "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel></secmodel>"


def test_who_runs_qemu_is_read_from_the_host() -> None:
    assert served_xml.qemu_user(capabilities(SELINUX, DAC)) == (64055, 108)
    assert served_xml.qemu_user(capabilities(SELINUX)) is None
    assert served_xml.qemu_user(capabilities(DAC.replace("+64055:+108", "libvirt-qemu:kvm"))) is None


def disk(served: NbdEndpoint, form: DiskFormat = "raw", location: str = "/pool/v", **spec: bool) -> TargetDisk:
    return TargetDisk(
        spec=DiskSpec(key="vda", size_bytes=1, format="raw", **spec),
        volume=VolumeRef(name="v", pool="p", size_bytes=1, format=form, location=location),
        served=served,
    )


@pytest.mark.parametrize("served", [UNIX, TLS])
def test_a_disk_comes_back_as_it_was(served: NbdEndpoint) -> None:
    domain = domain_xml.parse(PLAIN)
    before = ET.canonicalize(PLAIN, strip_text=True)
    node = domain.find("devices/disk")
    assert node is not None
    kept = served_xml.serve(node, disk(served))
    assert served_xml.served_keys(domain) == {"vda"}
    policies = node.find("driver")
    assert policies is not None
    assert (policies.get("error_policy"), policies.get("rerror_policy")) == ("stop", "stop")
    tag.put(domain, tag.element("m", "vm", **{served_xml.KEPT: kept}))
    assert served_xml.local(domain, "vda", "/pool/v", "raw")
    assert not served_xml.local(domain, "vda", "/pool/v", "raw")
    tag.strip(domain)
    assert ET.canonicalize(domain_xml.text_of(domain), strip_text=True) == before


def test_tls_names_the_server() -> None:
    node = domain_xml.parse(PLAIN).find("devices/disk")
    assert node is not None
    served_xml.serve(node, disk(TLS))
    source = node.find("source")
    assert source is not None
    assert (source.get("tls"), source.get("tlsHostname"), source.get("name")) == ("yes", "n", "e")


def test_what_cannot_be_served_is_refused() -> None:
    for bad in (disk(UNIX, "qcow2"), disk(UNIX, location="/dev/vg/v"), disk(UNIX, read_only=True)):
        node = domain_xml.parse(PLAIN).find("devices/disk")
        assert node is not None
        with pytest.raises(Unsupported):
            served_xml.serve(node, bad)


def test_a_job_and_all_its_images_are_seen() -> None:
    domain = domain_xml.parse(COPYING)
    state = served_xml.disk_states(domain)["vda"]
    assert (state.path, state.served, state.mirror, state.job, state.ready) == (
        "/pool/in",
        True,
        "/pool/out",
        "copy",
        True,
    )
    assert served_xml.locations(domain) == {"/pool/in", "/pool/out"}


@pytest.mark.parametrize(("form", "guards"), [("raw", 1), ("qcow2", 0)])
def test_a_session_guards_a_raw_base(form: str, guards: int) -> None:
    held = SessionDisk("vda", "/pool/o", "qcow2", Base("/pool/v", form), guarded=True)
    xml = session_xml("s", [held], migration="m", writable=True, address="/s", cache="none", note="overlay")
    domain = domain_xml.parse(xml)
    assert len(domain.findall("devices/disk[@device='cdrom']")) == guards
    assert served_xml.locations(domain) == {"/pool/o", "/pool/v"}
