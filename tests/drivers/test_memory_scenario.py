"""The controls that tests use on the in-memory cloud: faults, guests, crashes, and the log of calls."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from drivers.memory import MemoryCloud, Scenario
from tests.stream.streams import until
from whimbrel.dataplane.devices import open_device
from whimbrel.errors import (
    AuthFailed,
    BaseLost,
    Conflict,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Throttled,
    Unavailable,
    Unsupported,
    WhimbrelError,
)
from whimbrel.model.endpoint import Endpoint
from whimbrel.model.facts import NetworkFacts
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.vm import Power, TargetDisk, TargetVm, VmSpec, VolumeRef, VolumeSpec

MIB = 1 << 20
MIGRATION = "feedc0ffee"


@dataclass
class World:
    cloud: MemoryCloud
    scenario: Scenario

    def volume(self, name: str = "web-vda-feedc0ffee", size_bytes: int = MIB) -> VolumeRef:
        return self.cloud.volumes.ensure_volume(
            VolumeSpec(name=name, pool="default", size_bytes=size_bytes, format="qcow2", migration=MIGRATION)
        )

    def rebuilt(self, name: str = "rebuilt") -> VmSpec:
        source = self.scenario.add_vm("gone", running=False)
        self.scenario.remove_vm("gone", with_disks=True)
        volume = self.volume(f"{name}-vda-{MIGRATION}")
        return self.cloud.compute.ensure_vm(
            TargetVm(
                migration=MIGRATION,
                name=name,
                source=source,
                disks=(TargetDisk(spec=source.disks[0], volume=volume),),
                nics=source.nics,
            )
        )


@pytest.fixture
def world() -> Iterator[World]:
    name = f"scenario-{uuid.uuid4()}"
    yield World(MemoryCloud(name), Scenario(name))
    MemoryCloud.reset(name)


def write(endpoint: Endpoint, offset: int, data: bytes) -> None:
    device = open_device(endpoint)
    try:
        lane = device.lane()
        lane.submit_write(offset, memoryview(data))
        lane.reap()
    finally:
        device.close()


def denied() -> WhimbrelError:
    return PermissionDenied("refused by the scenario")


# --- faults


def test_a_fault_strikes_as_often_as_told(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.fail("compute", "power", lambda: Unavailable("daemon down"), times=2)
    for _ in range(2):
        with pytest.raises(Unavailable, match="daemon down"):
            world.cloud.compute.power(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING


def test_a_fault_strikes_only_its_method(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.fail("compute", "power", denied, times=None)
    assert world.cloud.compute.inspect(vm.ref).power is Power.RUNNING
    assert world.cloud.guest.quiesce(vm.ref) is False


def test_a_fault_until_cleared(world: World) -> None:
    fault = world.scenario.fail("*", "*", lambda: AuthFailed("bad password"), times=None)
    for call in (world.cloud.compute.inventory, world.cloud.volumes.pools, world.cloud.target_facts):
        with pytest.raises(AuthFailed):
            call()
    world.scenario.clear(fault)
    assert list(world.cloud.compute.inventory()) == []


def test_clear_takes_all_faults_back(world: World) -> None:
    for _ in range(3):
        world.scenario.fail("volumes", "pools", denied)
    world.scenario.clear()
    assert world.cloud.volumes.pools()


def test_each_strike_is_an_error_of_its_own(world: World) -> None:
    world.scenario.fail("volumes", "pools", lambda: Throttled("slow down", retry_after_s=3), times=2)
    raised = []
    for _ in range(2):
        with pytest.raises(Throttled) as caught:
            world.cloud.volumes.pools()
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_a_lost_answer_has_done_the_work(world: World) -> None:
    world.scenario.fail("volumes", "ensure_volume", lambda: Unavailable("connection lost"), when="after")
    with pytest.raises(Unavailable):
        world.volume()
    assert list(world.cloud.volumes.owned(MIGRATION)) == ["web-vda-feedc0ffee"]
    assert world.volume().name == "web-vda-feedc0ffee"


def test_a_fault_before_has_done_nothing(world: World) -> None:
    world.scenario.fail("volumes", "ensure_volume", denied)
    with pytest.raises(PermissionDenied):
        world.volume()
    assert list(world.cloud.volumes.owned(MIGRATION)) == []


def test_a_delay_delays_and_does_not_hold_the_cloud(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.delay("volumes", "pools", 3600.0)
    pausing, go_on = threading.Event(), threading.Event()

    def pause(_seconds: float) -> None:
        pausing.set()
        assert go_on.wait(60)

    monkeypatch.setattr("drivers.memory.calls.time", SimpleNamespace(sleep=pause))
    thread = threading.Thread(target=world.cloud.volumes.pools)
    thread.start()
    assert pausing.wait(60)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING
    go_on.set()
    thread.join(60)
    assert not thread.is_alive()


# --- the log of calls


def test_calls_are_logged_in_order_with_all_arguments(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.cloud.compute.start(vm.ref)
    world.scenario.fail("compute", "force_off", denied)
    with pytest.raises(PermissionDenied):
        world.cloud.compute.force_off(vm.ref)
    world.cloud.points.forget(vm.ref, migration=MIGRATION)
    assert world.scenario.calls == [
        ("compute", "start", {"ref": vm.ref, "paused": False}),
        ("compute", "force_off", {"ref": vm.ref}),
        ("points", "forget", {"ref": vm.ref, "migration": MIGRATION, "keep": ()}),
    ]
    assert world.scenario.calls_of("compute.start", "points.forget") == ["compute.start", "points.forget"]


def test_calls_of_every_object_of_the_cloud_are_in_one_log(world: World) -> None:
    MemoryCloud(world.cloud.name).volumes.pools()
    world.cloud.networks.networks()
    assert world.scenario.calls_of() == ["volumes.pools", "networks.networks"]


def test_wait_for_call(world: World) -> None:
    threading.Timer(0.05, world.cloud.volumes.pools).start()
    assert world.scenario.wait_for_call("volumes", "pools").method == "pools"
    with pytest.raises(TimeoutError):
        world.scenario.wait_for_call("volumes", "never", timeout_s=0.05)


# --- one state for all objects of a name


def test_a_restarted_worker_sees_the_same_cloud(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_write("web", "vda", 0, b"same")
    again = MemoryCloud(world.cloud.name)
    assert again.compute.inspect("web").ref == vm.ref
    assert Scenario(world.cloud.name).read_disk(vm.ref, "vda")[:4] == b"same"


def test_reset_empties_the_cloud_and_ends_its_exports(world: World) -> None:
    vm = world.scenario.add_vm("web")
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 1), migration=MIGRATION)
    world.scenario.fail("*", "*", denied, times=None)
    MemoryCloud.reset(world.cloud.name)
    assert list(world.cloud.compute.inventory()) == []
    assert world.scenario.calls_of() == ["compute.inventory"]
    with pytest.raises(NotFound):
        open_device(point.disks[0].endpoint)


def test_clouds_of_other_names_are_untouched(world: World) -> None:
    other = f"other-{uuid.uuid4()}"
    Scenario(other).add_vm("web")
    assert list(world.cloud.compute.inventory()) == []
    MemoryCloud.reset(world.cloud.name)
    assert [vm.name for vm in MemoryCloud(other).compute.inventory()] == ["web"]
    MemoryCloud.reset(other)


# --- guests


def test_a_guest_that_never_stops(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_stops("web", after_s=None)
    world.cloud.compute.request_stop(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING
    world.cloud.compute.force_off(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.OFF


def test_a_guest_that_stops_after_some_looks(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_stops("web", after_looks=2)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING
    world.cloud.compute.request_stop(vm.ref)
    looks = [world.cloud.compute.power(vm.ref) for _ in range(4)]
    assert looks == [Power.RUNNING, Power.RUNNING, Power.OFF, Power.OFF]


def test_a_guest_that_takes_its_time(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_stops("web", after_s=0.3)
    asked = time.monotonic()
    world.cloud.compute.request_stop(vm.ref)
    while world.cloud.compute.power(vm.ref) is Power.RUNNING:
        time.sleep(0.01)
    assert time.monotonic() - asked >= 0.3


def test_a_restarted_guest_forgets_the_request_to_stop(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_stops("web", after_s=60)
    world.cloud.compute.request_stop(vm.ref)
    world.cloud.compute.force_off(vm.ref)
    world.scenario.guest_stops("web")
    world.cloud.compute.start(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING


def test_stop_plans_hold_for_vms_still_to_come(world: World) -> None:
    world.scenario.guest_stops("rebuilt", after_s=None)
    vm = world.rebuilt()
    world.cloud.compute.start(vm.ref)
    world.cloud.compute.request_stop(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING


def test_a_rebuilt_guest_writes_when_its_cpus_run_and_not_before(world: World) -> None:
    world.scenario.when_guest_runs("rebuilt", lambda ref: world.scenario.guest_write(ref, "vda", 0, b"booted"))
    vm = world.rebuilt()
    world.cloud.compute.start(vm.ref, paused=True)
    assert world.scenario.read_disk(vm.ref, "vda")[:6] == bytes(6)
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 1), migration=MIGRATION)
    world.cloud.points.close(vm.ref, point.key, migration=MIGRATION)
    world.cloud.compute.resume(vm.ref)
    assert world.scenario.read_disk(vm.ref, "vda")[:6] == b"booted"
    world.cloud.compute.force_off(vm.ref)
    final = world.cloud.points.open(
        vm.ref, ["vda"], key=point_key(MIGRATION, 2), since=point.token, migration=MIGRATION, track=False
    )
    assert [extent.start for extent in open_device(final.disks[0].endpoint).changed()] == [0]


def test_a_guest_does_not_write_unless_it_runs(world: World) -> None:
    world.scenario.add_vm("web", running=False)
    with pytest.raises(Conflict):
        world.scenario.guest_write("web", "vda", 0, b"x")
    with pytest.raises(Conflict):
        world.scenario.guest_trim("web", "vda", 0, 4096)


def test_a_quiesced_guest_does_not_write(world: World) -> None:
    vm = world.scenario.add_vm("web", agent=True)
    assert world.cloud.guest.quiesce(vm.ref)
    with pytest.raises(Conflict, match="quiesced"):
        world.scenario.guest_write("web", "vda", 0, b"x")
    world.cloud.guest.thaw(vm.ref)
    world.scenario.guest_write("web", "vda", 0, b"x")
    assert world.scenario.read_disk("web", "vda")[:1] == b"x"


def test_scribbling_is_the_same_for_the_same_seed(world: World) -> None:
    for name in ("one", "two", "three"):
        world.scenario.add_vm(name)
    first = world.scenario.scribble("one", "vda", seed=7)
    assert world.scenario.scribble("two", "vda", seed=7) == first
    assert world.scenario.scribble("three", "vda", seed=8) != first
    assert world.scenario.read_disk("one", "vda") == world.scenario.read_disk("two", "vda")


def test_scribbling_in_the_background_leaves_points_frozen(world: World) -> None:
    vm = world.scenario.add_vm("web")
    with world.scenario.scribbling("web", "vda", seed=1, pause_s=0.0005):
        for serial in range(5):
            key = point_key(MIGRATION, serial)
            point = world.cloud.points.open(vm.ref, ["vda"], key=key, migration=MIGRATION)
            lane = open_device(point.disks[0].endpoint).lane()
            reads = []
            for _ in range(2):
                buffer = bytearray(MIB)
                lane.submit_read(0, memoryview(buffer))
                lane.reap()
                reads.append(bytes(buffer))
                time.sleep(0.01)
            assert reads[0] == reads[1]
            world.cloud.points.close(vm.ref, key, migration=MIGRATION)
        until(lambda: any(world.scenario.read_disk("web", "vda")), "a write")


def test_trimmed_ranges_are_changed_and_zero(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.guest_write("web", "vda", 0, b"x" * 65536)
    token = point_key(MIGRATION, 1)
    world.cloud.points.open(vm.ref, ["vda"], key=token, migration=MIGRATION)
    world.cloud.points.close(vm.ref, token, migration=MIGRATION)
    world.scenario.guest_trim("web", "vda", 0, 65536)
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 2), since=token, migration=MIGRATION)
    (extent,) = open_device(point.disks[0].endpoint).changed()
    assert (extent.start, extent.length, extent.zero) == (0, 65536, True)


# --- misfortune


def test_a_hypervisor_crash_takes_the_point_and_the_tracking(world: World) -> None:
    vm = world.scenario.add_vm("web")
    token = point_key(MIGRATION, 1)
    world.cloud.points.open(vm.ref, ["vda"], key=token, migration=MIGRATION)
    world.cloud.points.close(vm.ref, token, migration=MIGRATION)
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 2), since=token, migration=MIGRATION)
    device = open_device(point.disks[0].endpoint)
    world.scenario.crash_hypervisor("web")
    assert world.cloud.compute.power(vm.ref) is Power.CRASHED
    with pytest.raises(Unavailable):
        list(device.extents())
    with pytest.raises(BaseLost):
        world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 3), since=token, migration=MIGRATION)
    assert world.cloud.source_facts("web").disks[0].stale_tracking == (token, point_key(MIGRATION, 2))
    world.cloud.compute.start(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING


def test_a_live_point_ends_with_the_vms_process(world: World) -> None:
    vm = world.scenario.add_vm("web")
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 1), migration=MIGRATION)
    world.cloud.compute.force_off(vm.ref)
    with pytest.raises(NotFound):
        open_device(point.disks[0].endpoint)
    again = world.cloud.points.open(vm.ref, ["vda"], key=point.key, migration=MIGRATION)
    assert again.kind == "cold"


def test_a_vm_does_not_start_while_a_cold_point_reads_it(world: World) -> None:
    vm = world.scenario.add_vm("web", running=False)
    point = world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 1), migration=MIGRATION)
    with pytest.raises(Conflict, match=point.key):
        world.cloud.compute.start(vm.ref)
    world.cloud.points.close(vm.ref, point.key, migration=MIGRATION)
    world.cloud.compute.start(vm.ref)
    assert world.cloud.compute.power(vm.ref) is Power.RUNNING


def test_a_suspended_vm_has_no_point(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.set_power("web", Power.SUSPENDED)
    with pytest.raises(Unsupported):
        world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 1), migration=MIGRATION)


def test_tokens_lost_from_metadata_are_still_found_and_forgotten(world: World) -> None:
    vm = world.scenario.add_vm("web")
    token = point_key(MIGRATION, 1)
    world.cloud.points.open(vm.ref, ["vda"], key=token, migration=MIGRATION)
    world.cloud.points.close(vm.ref, token, migration=MIGRATION)
    world.scenario.lose_token_metadata("web")
    with pytest.raises(BaseLost):
        world.cloud.points.open(vm.ref, ["vda"], key=point_key(MIGRATION, 2), since=token, migration=MIGRATION)
    assert world.cloud.source_facts("web").disks[0].stale_tracking == (token,)
    assert list(world.cloud.points.owned(vm.ref, MIGRATION)) == [token]
    world.cloud.points.forget(vm.ref, migration=MIGRATION)
    assert world.scenario.leftovers(MIGRATION) == []


def test_writes_fail_after_so_many_bytes_and_go_on_when_healed(world: World) -> None:
    volume = world.volume()
    world.scenario.fail_writes(volume.name, after_bytes=8192)
    session = world.cloud.volumes.open_writer(writer_key(MIGRATION), {"vda": volume}, migration=MIGRATION)
    endpoint = session.disks[0].endpoint
    write(endpoint, 0, b"a" * 8192)
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            write(endpoint, 8192, b"b")
    world.scenario.heal_writes(volume.name)
    write(endpoint, 8192, b"b")
    assert world.scenario.read_volume("default", volume.name)[:8194] == b"a" * 8192 + b"b\0"


def test_a_writer_fails_once_and_then_recovers(world: World) -> None:
    volume = world.volume()
    session = world.cloud.volumes.open_writer(writer_key(MIGRATION), {"vda": volume}, migration=MIGRATION)
    world.scenario.fail_writes(volume.name, after_bytes=0, error=lambda: Unavailable("cut"), times=1)
    with pytest.raises(Unavailable, match="cut"):
        write(session.disks[0].endpoint, 0, b"x")
    write(session.disks[0].endpoint, 0, b"x")
    assert world.scenario.read_volume("default", volume.name)[:1] == b"x"


def test_a_full_pool(world: World) -> None:
    world.volume()
    world.scenario.add_pool("default", MIB)
    with pytest.raises(QuotaExceeded) as raised:
        world.volume("more-feedc0ffee")
    assert raised.value.evidence == {"free_bytes": "0", "wanted_bytes": str(MIB)}
    assert world.cloud.volumes.pools()[0].free_bytes == 0


# --- facts and what is left


def test_facts_can_be_replaced(world: World) -> None:
    world.scenario.add_vm("web")
    world.scenario.patch_source_facts("web", tpm=True, watchdog=True)
    world.scenario.patch_target_facts(vcpus_max=0)
    world.scenario.set_capabilities(start_paused=False)
    assert (world.cloud.source_facts("web").tpm, world.cloud.source_facts("web").watchdog) == (True, True)
    assert world.cloud.target_facts().vcpus_max == 0
    assert world.cloud.capabilities().start_paused is False


def test_networks_can_be_added(world: World) -> None:
    world.scenario.add_network(NetworkFacts(name="lan", isolated=True))
    world.scenario.add_vm("web", network="lan")
    assert {network.name for network in world.cloud.networks.networks()} == {"default", "lan"}
    assert world.cloud.compute.inspect("web").nics[0].network == "lan"


def test_leftovers_name_everything_until_it_is_gone(world: World) -> None:
    source = world.scenario.add_vm("web")
    key, token = writer_key(MIGRATION), point_key(MIGRATION, 1)
    vm = world.rebuilt()
    spare = world.volume()
    world.cloud.volumes.open_writer(key, {"vda": spare}, migration=MIGRATION)
    world.cloud.points.open(source.ref, ["vda"], key=token, migration=MIGRATION)
    port = world.cloud.networks.ensure_port("default", "52:54:00:aa:bb:cc", None, migration=MIGRATION)
    assert world.scenario.leftovers(MIGRATION) == sorted(
        [
            "vm rebuilt",
            f"volume rebuilt-vda-{MIGRATION}",
            f"volume {spare.name}",
            f"writer {key}",
            f"token {token}",
            f"point {token}",
            f"port {port}",
        ]
    )
    world.cloud.volumes.close_writer(key)
    world.cloud.points.close(source.ref, token, migration=MIGRATION)
    world.cloud.points.forget(source.ref, migration=MIGRATION)
    world.cloud.networks.ensure_port_absent(port, migration=MIGRATION)
    world.cloud.volumes.ensure_absent(spare.name, "default", migration=MIGRATION)
    world.cloud.compute.release_tag(vm.ref, migration=MIGRATION)
    assert world.scenario.leftovers(MIGRATION) == []
    assert world.cloud.target_facts().leftovers == ()


def test_the_console_shows_its_end(world: World) -> None:
    vm = world.scenario.add_vm("web")
    world.scenario.set_guest("web", console="booting\nlogin:")
    assert world.cloud.guest.console_tail(vm.ref) == "booting\nlogin:"
    assert world.cloud.guest.console_tail(vm.ref, max_bytes=6) == "login:"
    world.scenario.set_capabilities(console=False)
    assert world.cloud.guest.console_tail(vm.ref) is None
