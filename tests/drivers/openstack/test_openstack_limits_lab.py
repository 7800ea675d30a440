"""Limits, pauses, restarts and ends of tokens, with the lab's real APIs behind a proxy that limits them for real."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from activities.inventory import InventoryActivities
from drivers.openstack import OpenStackCloud
from labs.openstack import CloudHandle, OpenStackLab
from labs.ports import lend_port
from tests.drivers.openstack.accounts import member_auth, seen_by, write_entry
from tests.drivers.openstack.standing_proxy import Form, Proxy
from whimbrel.contracts.migration import INVENTORY, InventoryInput, InventoryResult
from whimbrel.contracts.names import CONTROL_QUEUE
from whimbrel.errors import QuotaExceeded, Throttled, Unavailable
from whimbrel.model.vm import VolumeSpec
from whimbrel.runtime.devserver import DevServer
from whimbrel.runtime.sandbox import runner
from whimbrel.runtime.translation import ErrorTranslation
from workflows.surveys import Inventory

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(240)]


@pytest.fixture
def lab(openstack_lab: OpenStackLab) -> CloudHandle:
    return openstack_lab.cloud("a")


@pytest.fixture
def nova(lab: CloudHandle) -> Iterator[Proxy]:
    with Proxy(lab.layout.url("nova")).serving() as proxy:
        yield proxy


@contextmanager
def through(lab: CloudHandle, path: Path, proxy: Proxy, **settings: Any) -> Iterator[OpenStackCloud]:
    """The lab as the member sees it, with Nova behind the proxy."""
    config = write_entry(lab, path, member_auth(lab), compute_endpoint_override=f"{proxy.url}/v2.1")
    cloud = seen_by(lab, "mine", config, **settings)
    try:
        yield cloud
    finally:
        cloud.close()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_real_429_is_throttled_and_the_pause_is_kept_by_all_threads(
    lab: CloudHandle, nova: Proxy, tmp_path: Path, form: Form
) -> None:
    with through(lab, tmp_path / "clouds.yaml", nova) as cloud:
        cloud.compute.inventory()  # versions and token are known from here on
        nova.calls, nova.span_s, nova.pause_s, nova.form = 2, 60.0, 20, form
        told: list[Throttled] = []

        def ask() -> None:
            for _ in range(4):
                try:
                    cloud.compute.inventory()
                except Throttled as error:
                    told.append(error)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told
        assert all(15.0 <= error.retry_after_s <= 21.0 for error in told)
        # some were on their way when the first was told; after that nothing is sent
        assert nova.refused <= len(threads)
        sent = nova.refused + nova.passed
        with pytest.raises(Throttled):
            cloud.compute.inventory()
        assert nova.refused + nova.passed == sent
        assert cloud.volumes.pools(), "Cinder has asked for no pause"


@pytest.mark.parametrize("status", [413, 503])
def test_other_answers_with_a_pause_are_kept_too(lab: CloudHandle, nova: Proxy, tmp_path: Path, status: int) -> None:
    with through(lab, tmp_path / "clouds.yaml", nova) as cloud:
        cloud.compute.inventory()
        nova.calls, nova.status, nova.pause_s = 0, status, 7
        with pytest.raises(Throttled) as raised:
            cloud.compute.inventory()
        assert raised.value.retry_after_s == 7.0


def test_a_wave_stays_below_the_limits_that_are_set(lab: CloudHandle, nova: Proxy, tmp_path: Path) -> None:
    """Ten threads; the API would refuse the eleventh call in a second, and none comes."""
    nova.calls, nova.span_s = 10, 1.0
    settings = {"max_concurrent_calls": 3, "calls_per_s": 8.0}
    with through(lab, tmp_path / "clouds.yaml", nova, **settings) as cloud, ThreadPoolExecutor(10) as wave:
        found = list(wave.map(lambda _: len(cloud.compute.inventory()), range(10)))
    assert len(found) == 10
    assert nova.refused == 0
    assert 1 <= nova.most_at_once <= 3


def test_without_limits_the_same_wave_is_refused(lab: CloudHandle, nova: Proxy, tmp_path: Path) -> None:
    """What the test above would show if nothing were limited."""
    with through(lab, tmp_path / "clouds.yaml", nova) as cloud, ThreadPoolExecutor(10) as wave:
        cloud.compute.inventory()
        nova.calls, nova.span_s = 10, 60.0

        def ask(_: int) -> int:
            try:
                return len(cloud.compute.inventory())
            except Throttled:
                return -1

        list(wave.map(ask, range(20)))
    assert nova.refused > 0


# --- with Temporal


class One:
    """A registry of one cloud."""

    def __init__(self, cloud: Any) -> None:
        self._cloud = cloud

    def get(self, _: str) -> Any:
        return self._cloud

    def names(self) -> list[str]:
        return ["lab"]


def listed(cloud: OpenStackCloud, directory: Path, meanwhile: Callable[[], None]) -> tuple[InventoryResult, list[str]]:
    """The inventory by a real Temporal server, and the failures it saw; ``meanwhile`` runs once it has begun."""

    async def story() -> tuple[InventoryResult, list[str]]:
        server = DevServer(directory, lend_port(), lend_port(), bound=True)
        server.start()
        try:
            client: Client = await server.ready(60.0)
            worker = Worker(
                client,
                task_queue=CONTROL_QUEUE,
                workflows=[Inventory],
                activities=[InventoryActivities(One(cloud)).list],
                activity_executor=ThreadPoolExecutor(4),
                workflow_runner=runner(),
                interceptors=[ErrorTranslation()],
            )
            async with worker:
                handle = await client.start_workflow(
                    INVENTORY,
                    InventoryInput(cloud="lab"),
                    id=f"inventory-{secrets.token_hex(4)}",
                    task_queue=CONTROL_QUEUE,
                    result_type=InventoryResult,
                )
                seen: list[str] = []
                done = asyncio.create_task(handle.result())
                going = asyncio.create_task(asyncio.to_thread(meanwhile))
                while not done.done():
                    described = await handle.describe()
                    seen += [
                        pending.last_failure.application_failure_info.type
                        for pending in described.raw_description.pending_activities
                        if pending.HasField("last_failure")
                    ]
                    await asyncio.sleep(0.2)
                await going
                return await done, seen
        finally:
            server.stop()

    return asyncio.run(asyncio.wait_for(story(), 200))


def test_a_pause_is_waited_for_by_temporal(lab: CloudHandle, nova: Proxy, tmp_path: Path) -> None:
    """The worker is told 429 and a date; the retry comes after it, not before, and succeeds."""
    with through(lab, tmp_path / "clouds.yaml", nova) as cloud:
        cloud.compute.inventory()
        nova.calls, nova.span_s, nova.pause_s, nova.form = 0, 1.0, 6, "date"

        def limit_ends_after_the_first_refusal() -> None:
            while not nova.refused:
                time.sleep(0.05)
            nova.calls = 1000

        began = time.monotonic()
        result, seen = listed(cloud, tmp_path / "temporal", limit_ends_after_the_first_refusal)
        assert not result.more
        assert set(seen) == {"Throttled"}
        assert nova.refused == 1
        assert nova.too_early == 0
        assert time.monotonic() - began >= 4.0


def test_a_restarted_nova_api_is_survived(openstack_lab: OpenStackLab, lab: CloudHandle, tmp_path: Path) -> None:
    """Stopped before the call and started again while Temporal tries: Unavailable first, then it answers."""
    cloud = seen_by(lab, "a-member")
    cloud.compute.inventory()
    openstack_lab.stop("a-nova-api")
    try:
        with pytest.raises(Unavailable):
            cloud.compute.inventory()

        def start_again() -> None:
            time.sleep(3)
            openstack_lab.start("a-nova-api")

        result, seen = listed(cloud, tmp_path / "temporal", start_again)
    finally:
        openstack_lab.start("a-nova-api")
        cloud.close()
    assert not result.more
    assert set(seen) == {"Unavailable"}


# --- tokens, quotas, versions


def test_a_revoked_token_is_replaced_by_the_next_call(lab: CloudHandle) -> None:
    cloud = seen_by(lab, "a-member")
    with cloud._connection.using("asking for the token") as conn:
        before = conn.auth_token
        answer = conn.identity.delete("/auth/tokens", headers={"X-Subject-Token": before})
        assert answer.status_code == 204
        # the services may have it in their cache; Keystone holds it for valid no more
        url = member_auth(lab)["auth_url"] + "/auth/tokens"
        both = {"X-Auth-Token": before, "X-Subject-Token": before}
        assert conn.session.get(url, authenticated=False, raise_exc=False, headers=both).status_code == 401
    facts = cloud.target_facts()
    assert facts.reachable
    assert not facts.access.why_refused
    with cloud._connection.using("asking for the token") as conn:
        assert conn.auth_token != before
    cloud.compute.inventory()
    cloud.close()


def test_real_quotas_are_told_as_such_with_the_request(lab: CloudHandle) -> None:
    """Cinder's own refusal of a volume that is too large for what the project has left."""
    cloud = seen_by(lab, "a-member")
    migration = secrets.token_hex(5)
    spec = VolumeSpec(
        name=f"big-{migration}", pool=lab.volume_type, size_bytes=5000 << 30, format="raw", migration=migration
    )
    with pytest.raises(QuotaExceeded) as raised:
        cloud.volumes.ensure_volume(spec)
    assert raised.value.evidence["request"].startswith("req-")
    assert "raise the project's quota" in raised.value.action
    cloud.close()


@pytest.mark.parametrize(("newest", "enough"), [("2.38", False), ("2.47", True), ("2.95", True), ("2.999", True)])
def test_versions_are_negotiated_or_refused(
    lab: CloudHandle, nova: Proxy, tmp_path: Path, newest: str, enough: bool
) -> None:
    """An older server is used with what it knows, or refused with both numbers; a newer one as ours knows it."""
    nova.newest = newest
    with through(lab, tmp_path / "clouds.yaml", nova) as cloud:
        facts = cloud.target_facts()
        assert facts.capabilities is not None
        assert facts.capabilities.version == f"Nova {newest}"
        if enough:
            assert facts.access.too_old == ()
            cloud.compute.inventory()
        else:
            (told,) = facts.access.too_old
            assert "2.38" in told
            assert "2.47" in told
