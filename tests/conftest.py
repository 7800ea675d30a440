"""Fixtures that any test may use: the KVM lab and its guests."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:  # the lab needs libvirt-python; tests without the lab do not
    from labs.kvm import GuestSpec, KvmLab, LabGuest
    from labs.openstack import OpenStackLab

# How long an example takes, or its making, is the machine's matter. All else is as hypothesis has it here or in CI.
settings.register_profile("whimbrel", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whimbrel")

REPOSITORY = Path(__file__).resolve().parents[1]
LAB_CLOUDS = ("a", "b")


def _require_lab() -> None:
    """Fail, never skip, when the lab cannot run here, unless the caller asked for that by WHIMBREL_SKIP_LAB=1."""
    if os.environ.get("WHIMBREL_SKIP_LAB") == "1":
        pytest.skip("WHIMBREL_SKIP_LAB=1")
    check = subprocess.run(
        [REPOSITORY / "deploy/install-system", "--check"], capture_output=True, text=True, check=False
    )
    if check.returncode:
        pytest.fail(f"the lab's packages are missing; run deploy/install-system\n{check.stderr}", pytrace=False)
    if os.geteuid() != 0:
        pytest.fail("the lab needs root; run as root, or leave it out by WHIMBREL_SKIP_LAB=1", pytrace=False)


@pytest.fixture(scope="session")
def kvm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KvmLab]:
    """Clouds "a" and "b", up once per session and xdist worker, gone afterwards."""
    _require_lab()
    from labs.kvm import KvmLab

    lab = KvmLab(tmp_path_factory.mktemp("lab"))
    try:
        lab.up(LAB_CLOUDS)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def new_lab(tmp_path: Path) -> Iterator[KvmLab]:
    """A lab of its own that is not up yet, for tests that break or end one."""
    _require_lab()
    from labs.kvm import KvmLab

    lab = KvmLab(tmp_path / "own-lab")
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab_guest(kvm_lab: KvmLab, request: pytest.FixtureRequest) -> Iterator[Callable[..., LabGuest]]:
    """Return ``make(cloud="a", spec=GuestSpec(...), **changes) -> LabGuest``: defined, not started, uniquely named.

    ``changes`` are fields of GuestSpec. After the test the guests are removed from every cloud, with the daemons
    started again if the test left one down.
    """
    from labs.kvm import GuestSpec
    from labs.kvm.accel import virt_type

    made: list[LabGuest] = []
    stem = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:30]

    def make(cloud: str = "a", spec: GuestSpec | None = None, **changes: object) -> LabGuest:
        name = f"{stem}-{secrets.token_hex(3)}"
        guest_spec = replace(spec or GuestSpec(name, virt_type=virt_type()), name=name, **changes)  # type: ignore[arg-type]
        guest = kvm_lab.guest(name)
        made.append(guest)
        guest.create(guest_spec, cloud)
        return guest

    yield make
    for cloud in LAB_CLOUDS:
        kvm_lab.start_libvirtd(cloud)
        for guest in made:
            guest.remove(cloud)


def _require_openstack() -> None:
    if os.environ.get("WHIMBREL_SKIP_LAB") == "1":
        pytest.skip("WHIMBREL_SKIP_LAB=1")
    if os.geteuid() != 0:
        pytest.fail("the lab needs root; run as root, or leave it out by WHIMBREL_SKIP_LAB=1", pytrace=False)


@pytest.fixture(scope="session")
def openstack_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root of the session's OpenStack lab, ended afterwards.

    With WHIMBREL_OPENSTACK_ROOT the lab there is used, brought up if need be, and left up.
    """
    _require_openstack()
    from labs.openstack import OpenStackLab

    if kept := os.environ.get("WHIMBREL_OPENSTACK_ROOT"):
        yield Path(kept)
        return
    root = tmp_path_factory.mktemp("openstack")
    try:
        yield root
    finally:
        OpenStackLab(root).down()


@pytest.fixture(scope="session")
def ceph_lab(openstack_root: Path) -> OpenStackLab:
    """The lab's Ceph with the keys of cloud "a", once per session; of the clouds nothing runs for it."""
    from labs.openstack import OpenStackLab

    lab = OpenStackLab(openstack_root, ("a",), say=print)
    lab.up_ceph()
    return lab


@pytest.fixture(scope="session")
def openstack_lab(openstack_root: Path) -> OpenStackLab:
    """OpenStack cloud "a", once per session."""
    from labs.openstack import OpenStackLab

    lab = OpenStackLab(openstack_root, ("a",), say=print)
    lab.up()
    return lab


@pytest.fixture(scope="session")
def openstack_clouds(openstack_root: Path) -> OpenStackLab:
    """OpenStack clouds "a" and "b", once per session; shares cloud "a" with ``openstack_lab``."""
    from labs.openstack import OpenStackLab

    lab = OpenStackLab(openstack_root, ("a", "b"), say=print)
    lab.up()
    return lab
