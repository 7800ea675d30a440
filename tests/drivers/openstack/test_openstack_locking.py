"""Nova's lock as a fence, on the real Nova: whose it is, with a reason and without, and what others do with it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openstack.exceptions import ConflictException

from drivers.openstack import OpenStackCloud, locking
from labs.openstack import OpenStackLab
from tests.contract.openstack_harness import OpenStackHarness
from tests.drivers.openstack.accounts import member_auth, seen_by, write_entry
from whimbrel.errors import Conflict
from whimbrel.model.naming import migration_id
from whimbrel.model.vm import Power

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(300)]


class Locked:
    """A server that is off; ``cloud`` is the driver as the tenant's member, ``owner`` the member by hand."""

    def __init__(self, harness: OpenStackHarness, entry: Path) -> None:
        self.harness = harness
        self.ref = harness.make_vm([(1 << 20, "raw")])
        self.cloud: OpenStackCloud = seen_by(harness.lab, "mine", entry)
        self.owner: Any = harness.lab.connect(member=True).compute
        self.migration = migration_id("locking", secrets.token_hex(8))

    def server(self) -> Any:
        return self.owner.get_server(self.ref)


@pytest.fixture(params=[None, "2.60"], ids=["reason", "mark"])
def locked(openstack_lab: OpenStackLab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Locked]:
    """With a Nova that knows reasons, and asked as one that does not."""
    handle = openstack_lab.cloud("a")
    more = {"compute_default_microversion": request.param} if request.param else {}
    harness = OpenStackHarness(handle)
    made = Locked(harness, write_entry(handle, tmp_path / "clouds.yaml", member_auth(handle), **more))
    yield made
    made.cloud.close()
    harness.end()


def test_the_owner_is_refused_and_told_why(locked: Locked) -> None:
    before = locked.cloud.compute.inspect(locked.ref)
    for _ in range(2):
        locked.cloud.compute.fence(locked.ref, migration=locked.migration)
    with pytest.raises(ConflictException, match="is locked"):
        locked.owner.start_server(locked.ref)
    with pytest.raises(Conflict, match=locked.migration):
        locked.cloud.compute.start(locked.ref)
    server = locked.server()
    assert locked.migration in (server.locked_reason or server.metadata.get(locking.LOCKED, ""))
    assert locked.cloud.compute.inspect(locked.ref) == before
    assert locked.cloud.source_facts(locked.ref).locked == "", "our own lock is no obstacle"
    for _ in range(2):
        locked.cloud.compute.unfence(locked.ref, migration=locked.migration)
    assert locked.server().metadata == {}
    locked.cloud.compute.start(locked.ref)
    assert locked.cloud.compute.power(locked.ref) is Power.RUNNING


def test_a_lock_that_somebody_has_taken_away(locked: Locked) -> None:
    locked.cloud.compute.fence(locked.ref, migration=locked.migration)
    locked.owner.unlock_server(locked.ref)
    assert locked.cloud.compute.fenced(locked.ref) is None
    locked.cloud.compute.unfence(locked.ref, migration=locked.migration)
    assert (locked.server().metadata, locked.server().is_locked) == ({}, False)


def test_the_owners_own_lock_is_left_alone(locked: Locked) -> None:
    locked.owner.lock_server(locked.ref, locked_reason="audit")
    facts = locked.cloud.source_facts(locked.ref)
    assert facts.locked.startswith("the server is locked")
    locked.cloud.compute.fence(locked.ref, migration=locked.migration)
    assert locked.cloud.compute.fenced(locked.ref) is None
    locked.cloud.compute.unfence(locked.ref, migration=locked.migration)
    assert locked.server().is_locked is True
    assert locked.server().locked_reason == "audit"
    with pytest.raises(Conflict, match="locked"):
        locked.cloud.compute.start(locked.ref)


def test_an_administrator_may_override_a_lock(locked: Locked, openstack_lab: OpenStackLab) -> None:
    locked.owner.lock_server(locked.ref, locked_reason="audit")
    handle = openstack_lab.cloud("a")
    admin = seen_by(handle, f"{handle.name}-tenant-admin")
    try:
        assert admin.source_facts(locked.ref).locked == ""
    finally:
        admin.close()


def test_the_lab_entry_is_asked_with_an_old_version(locked: Locked, request: pytest.FixtureRequest) -> None:
    """The second form of these tests is one: it has no reasons."""
    config = yaml.safe_load(Path(str(locked.cloud._connection._config_file)).read_text())["clouds"]["mine"]
    old = "compute_default_microversion" in config
    locked.cloud.compute.fence(locked.ref, migration=locked.migration)
    assert (locked.server().locked_reason is None) == old
    assert (locking.LOCKED in locked.server().metadata) == old
