"""Deaths in the middle: of the worker, of libvirtd, of QEMU, of both. What was opened is found again or redone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from labs.kvm import KvmLab
from tests.contract.blockio import apply_changes, changed_of, covers, read_point, write_point
from tests.contract.libvirt_harness import LibvirtHarness
from whimbrel.errors import BaseLost, Conflict, Unavailable
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.model.naming import point_key, volume_name, writer_key
from whimbrel.model.point import OpenPoint, WriterSession
from whimbrel.model.vm import Power, VolumeSpec

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

SIZE = 4 << 20
GRAIN = 64 * 1024
REPOSITORY = Path(__file__).resolve().parents[3]


def killed_worker(harness: LibvirtHarness, lab: KvmLab, what: str, argument: dict[str, Any]) -> str:
    """What a worker of its own process printed before it was killed by SIGKILL."""
    script = Path(__file__).with_name("worker_dies.py")
    run = subprocess.run(
        [sys.executable, script, lab.uri("a"), str(harness.work), what, json.dumps(argument)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    return run.stdout


def noise(seed: int, length: int = 200_000) -> bytes:
    return random.Random(seed).randbytes(length)


def passed(harness: LibvirtHarness, ref: str, migration: str, serial: int, **more: Any) -> bytes:
    """Open, read and close a point; its bytes. Its token is its key."""
    key = point_key(migration, serial)
    point = harness.cloud.points.open(ref, ["vda"], key=key, migration=migration, **more)
    content = read_point(point.disk("vda"))
    harness.cloud.points.close(ref, key, migration=migration)
    return content


def assert_clean(harness: LibvirtHarness, ref: str, migration: str) -> None:
    """Nothing of the migration is left but the VM's own disks."""
    harness.cloud.points.forget(ref, migration=migration)
    assert list(harness.cloud.points.owned(ref, migration)) == []
    assert not [name for name in harness.files() if name.startswith("whimbrel-")]
    assert not list(harness.work.glob("*.sock"))


@pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
def test_a_killed_workers_point_is_adopted(
    harness: LibvirtHarness, kvm_lab: KvmLab, migration: str, running: bool
) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    harness.guest_write(ref, "vda", 3 * GRAIN, noise(1))
    if not running:
        harness.cloud.compute.force_off(ref)
    before = harness.read_disk(ref, "vda")
    asked = {"ref": ref, "disks": ["vda"], "key": point_key(migration, 1), "migration": migration}
    told = OpenPoint.model_validate_json(killed_worker(harness, kvm_lab, "point", asked))
    if running:
        harness.guest_write(ref, "vda", 3 * GRAIN, noise(2))
    adopted = harness.cloud.points.open(ref, ["vda"], key=told.key, migration=migration)
    assert adopted == told
    assert read_point(adopted.disk("vda")) == before
    harness.cloud.points.close(ref, told.key, migration=migration)
    assert_clean(harness, ref, migration)


def test_a_killed_workers_writer_is_adopted(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    spec = VolumeSpec(
        name=volume_name("vm", "vda", migration), pool="default", size_bytes=SIZE, format="qcow2", migration=migration
    )
    volume = harness.cloud.volumes.ensure_volume(spec)
    asked = {"key": writer_key(migration), "volumes": {"vda": volume.model_dump()}, "migration": migration}
    told = WriterSession.model_validate_json(killed_worker(harness, kvm_lab, "writer", asked))
    session = harness.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)
    assert session == told
    write_point(session.disk("vda"), GRAIN, noise(3))
    harness.cloud.volumes.close_writer(writer_key(migration))
    assert harness.read_volume(volume)[GRAIN : GRAIN + 200_000] == noise(3)


def test_libvirtd_killed_in_mid_backup(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    base = passed(harness, ref, migration, 1)
    harness.guest_write(ref, "vda", 5 * GRAIN, noise(4))
    asked = {"key": point_key(migration, 2), "since": point_key(migration, 1), "migration": migration}
    first = harness.cloud.points.open(ref, ["vda"], **asked)  # type: ignore[arg-type]
    kvm_lab.kill_libvirtd("a")
    try:
        with pytest.raises(Unavailable):
            harness.cloud.points.open(ref, ["vda"], **asked)  # type: ignore[arg-type]
        assert read_point(first.disk("vda")), "the export serves on without the daemon"
    finally:
        kvm_lab.start_libvirtd("a")
    again = harness.cloud.points.open(ref, ["vda"], **asked)  # type: ignore[arg-type]
    assert again == first
    assert apply_changes(base, again.disk("vda")) == harness.read_disk(ref, "vda")
    harness.cloud.points.close(ref, first.key, migration=migration)
    assert_clean(harness, ref, migration)


def test_qemu_and_libvirtd_killed_in_mid_backup(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    """Scratch file, socket and an unclosed bitmap stay behind; the same call must work on them."""
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    passed(harness, ref, migration, 1)
    key = point_key(migration, 2)
    harness.cloud.points.open(ref, ["vda"], key=key, since=point_key(migration, 1), migration=migration)
    pid = int((kvm_lab.cloud("a").run / "qemu" / f"{harness.domain(ref).name()}.pid").read_text())
    kvm_lab.kill_libvirtd("a")
    subprocess.run(["kill", "-9", str(pid)], check=True)
    kvm_lab.start_libvirtd("a")
    assert harness.cloud.compute.power(ref) in {Power.OFF, Power.CRASHED}
    harness.cloud.compute.start(ref)
    with pytest.raises(BaseLost):
        harness.cloud.points.open(ref, ["vda"], key=key, since=point_key(migration, 1), migration=migration)
    harness.guest_write(ref, "vda", 0, noise(5))
    point = harness.cloud.points.open(ref, ["vda"], key=key, migration=migration)
    assert point.token == key
    assert read_point(point.disk("vda")) == harness.read_disk(ref, "vda")
    harness.cloud.points.close(ref, key, migration=migration)
    harness.guest_write(ref, "vda", 9 * GRAIN, noise(6))
    following = harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 3), since=key, migration=migration)
    assert covers(changed_of(following.disk("vda")), 9 * GRAIN, 200_000)
    harness.cloud.points.close(ref, following.key, migration=migration)
    assert_clean(harness, ref, migration)


def test_qemu_killed_then_read_cold(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    passed(harness, ref, migration, 1)
    harness.guest_write(ref, "vda", GRAIN, noise(7))
    harness.kill_qemu(ref)
    key = point_key(migration, 2)
    with pytest.raises(BaseLost) as lost:
        harness.cloud.points.open(ref, ["vda"], key=key, since=point_key(migration, 1), migration=migration)
    assert lost.value.evidence["checkpoint"] == point_key(migration, 1)
    point = harness.cloud.points.open(ref, ["vda"], key=key, migration=migration)
    assert (point.kind, point.token, point.disk("vda").tracked) == ("cold", None, False)
    assert read_point(point.disk("vda")) == harness.read_disk(ref, "vda")
    harness.cloud.points.close(ref, key, migration=migration)
    harness.cloud.points.forget(ref, migration=migration)
    assert list(harness.cloud.points.owned(ref, migration)) == []
    harness.cloud.compute.start(ref)


def test_a_round_of_unknown_outcome_is_redone(harness: LibvirtHarness, migration: str) -> None:
    """Checkpoint there, job over: its bitmap goes to its parent, so nothing of the changes is lost."""
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    base = passed(harness, ref, migration, 1)
    harness.guest_write(ref, "vda", 2 * GRAIN, noise(8))
    passed(harness, ref, migration, 2, since=point_key(migration, 1))
    harness.guest_write(ref, "vda", 20 * GRAIN, noise(9))
    again = harness.cloud.points.open(
        ref, ["vda"], key=point_key(migration, 2), since=point_key(migration, 1), migration=migration
    )
    changed = changed_of(again.disk("vda"))
    assert covers(changed, 2 * GRAIN, 200_000)
    assert covers(changed, 20 * GRAIN, 200_000)
    assert apply_changes(base, again.disk("vda")) == harness.read_disk(ref, "vda")
    harness.cloud.points.close(ref, again.key, migration=migration)


def remove_bitmap(harness: LibvirtHarness, ref: str, name: str) -> None:
    """Take a bitmap away behind libvirt's back."""
    from drivers.libvirt import qmp, tracking

    domain = harness.domain(ref)
    node = tracking.running_nodes(domain)["vda"]
    qmp.execute(domain, "block-dirty-bitmap-remove", node=node.name, name=name)


def test_a_missing_bitmap_is_base_lost_and_healed(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    passed(harness, ref, migration, 1)
    remove_bitmap(harness, ref, point_key(migration, 1))
    asked: dict[str, Any] = {"key": point_key(migration, 2), "migration": migration}
    with pytest.raises(BaseLost):
        harness.cloud.points.open(ref, ["vda"], since=point_key(migration, 1), **asked)
    stale = harness.cloud.source_facts(ref).disks[0].stale_tracking
    assert [word for word in stale if point_key(migration, 1) in word]
    assert harness.cloud.points.open(ref, ["vda"], **asked).token == point_key(migration, 2)
    harness.cloud.points.close(ref, point_key(migration, 2), migration=migration)
    harness.cloud.points.forget(ref, migration=migration)
    assert list(harness.cloud.points.owned(ref, migration)) == []


@pytest.mark.parametrize("running", [True, False], ids=["on", "off"])
def test_a_bitmap_without_checkpoint_is_lost_owned_and_forgotten(
    harness: LibvirtHarness, migration: str, running: bool
) -> None:
    """libvirt's metadata can be lost (a VM defined anew): the bitmap alone is not trusted, and not left behind."""
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    token = point_key(migration, 1)
    passed(harness, ref, migration, 1)
    harness.domain(ref).checkpointLookupByName(token).delete(2)  # VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
    if not running:
        harness.cloud.compute.force_off(ref)
    with pytest.raises(BaseLost):
        harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 2), since=token, migration=migration)
    assert token in harness.cloud.points.owned(ref, migration)
    if running:
        again = harness.cloud.points.open(ref, ["vda"], key=token, migration=migration)
        assert again.token == token
        harness.cloud.points.close(ref, token, migration=migration)
    harness.cloud.points.forget(ref, migration=migration)
    assert list(harness.cloud.points.owned(ref, migration)) == []
    assert harness.bitmaps(ref, "vda") == set()


def test_healing_spares_other_tools(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    foreign = harness.add_foreign_token(ref)
    passed(harness, ref, migration, 1)
    harness.guest_write(ref, "vda", 7 * GRAIN, noise(10))
    passed(harness, ref, migration, 2, since=point_key(migration, 1))
    remove_bitmap(harness, ref, point_key(migration, 2))
    with pytest.raises(BaseLost):
        passed(harness, ref, migration, 3, since=point_key(migration, 2))
    passed(harness, ref, migration, 3)
    harness.cloud.points.forget(ref, migration=migration)
    assert set(harness.foreign_tokens(ref)) == {foreign}
    assert harness.bitmaps(ref, "vda") == {foreign}
    assert foreign in harness.cloud.source_facts(ref).disks[0].foreign_tracking


def test_forgetting_on_a_stopped_vm_gives_changes_to_the_other_tool(harness: LibvirtHarness, migration: str) -> None:
    """Ours lay between another tool's checkpoint and now: what ours recorded must not be lost to it."""
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    foreign = harness.add_foreign_token(ref)
    passed(harness, ref, migration, 1)
    harness.guest_write(ref, "vda", 11 * GRAIN, noise(11))
    harness.cloud.compute.force_off(ref)
    harness.cloud.points.forget(ref, migration=migration)
    assert set(harness.foreign_tokens(ref)) == {foreign}
    harness.cloud.compute.start(ref)
    harness.guest_write(ref, "vda", 30 * GRAIN, noise(12))
    socket, scratch = harness.work / "o.sock", harness.work / "o.scratch"
    domain = harness.domain(ref)
    domain.backupBegin(
        f"<domainbackup mode='pull'><incremental>{foreign}</incremental><server transport='unix' socket='{socket}'/>"
        f"<disks><disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>",
        None,
    )
    from whimbrel.model.endpoint import NbdEndpoint
    from whimbrel.model.point import DiskPoint

    contexts = ("qemu:dirty-bitmap:backup-vda",)
    disk = DiskPoint(
        key="vda",
        size_bytes=SIZE,
        endpoint=NbdEndpoint(unix_path=str(socket), export="vda", dirty_contexts=contexts),
    )
    changed = changed_of(disk)
    domain.abortJob()
    assert covers(changed, 11 * GRAIN, 200_000)
    assert covers(changed, 30 * GRAIN, 200_000)


def test_reverse_writes_keep_the_disks_own_tracking(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    passed(harness, ref, migration, 1)
    harness.cloud.compute.force_off(ref)
    vm = harness.cloud.compute.inspect(ref)
    session = harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
    write_point(session.disk("vda"), 13 * GRAIN, noise(13))
    with pytest.raises(Conflict):
        harness.cloud.points.open(ref, ["vda"], key=point_key(migration, 2), migration=migration)
    assert harness.cloud.points.owned(ref, migration) == [point_key(migration, 1)]
    harness.cloud.volumes.close_writer(writer_key(migration))
    point = harness.cloud.points.open(
        ref, ["vda"], key=point_key(migration, 2), since=point_key(migration, 1), migration=migration
    )
    assert covers(changed_of(point.disk("vda")), 13 * GRAIN, 200_000)
    assert read_point(point.disk("vda"))[13 * GRAIN : 13 * GRAIN + 200_000] == noise(13)


def test_an_open_cold_point_keeps_the_vm_off(harness: LibvirtHarness, migration: str) -> None:
    ref = harness.make_vm([(SIZE, "raw"), (SIZE, "qcow2")])
    key = point_key(migration, 1)
    harness.cloud.points.open(ref, ["vda", "vdb"], key=key, migration=migration)
    with pytest.raises(Conflict):
        harness.cloud.compute.start(ref)
    assert key not in {vm.name for vm in harness.cloud.compute.inventory()}
    assert any(key in word for word in harness.cloud.target_facts().leftovers)
    harness.cloud.points.close(ref, key, migration=migration)
    harness.cloud.compute.start(ref)


def test_a_silent_daemon_is_unavailable_and_other_threads_go_on(harness: LibvirtHarness, kvm_lab: KvmLab) -> None:
    """Keepalive ends a call on a daemon that has stopped; libvirt's calls do not hold the interpreter meanwhile."""
    from labs.kvm import processes

    ref = harness.make_vm([(SIZE, "qcow2")])
    assert harness.cloud.compute.power(ref) is Power.OFF
    one = kvm_lab.cloud("a")
    pid = processes.daemon_pid(one)
    assert pid is not None
    turns = 0
    done = threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.wait(0.05):
            turns += 1

    counter = threading.Thread(target=count)
    processes.send(one, pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        counter.start()
        with pytest.raises(Unavailable):
            harness.cloud.compute.power(ref)
        waited = time.monotonic() - begun
    finally:
        done.set()
        processes.send(one, pid, signal.SIGCONT)
        counter.join()
    assert turns > waited / 0.05 / 20
    assert harness.fresh_cloud().compute.power(ref) is Power.OFF
    assert harness.cloud.compute.power(ref) is Power.OFF


def test_a_session_whose_worker_died_before_serving_is_completed(harness: LibvirtHarness, migration: str) -> None:
    """Killed right after the domain was made: no server, no exports yet."""
    from drivers.libvirt.session_xml import SessionDisk, session_xml

    spec = VolumeSpec(
        name=volume_name("vm", "vda", migration), pool="default", size_bytes=SIZE, format="qcow2", migration=migration
    )
    volume = harness.cloud.volumes.ensure_volume(spec)
    key = writer_key(migration)
    address = str(harness.work / "half.sock")
    disks = [SessionDisk("vda", volume.location, "qcow2")]
    xml = session_xml(key, disks, migration=migration, writable=True, address=address, cache="none", note="")
    harness.conn.createXML(xml, 1)  # VIR_DOMAIN_START_PAUSED
    session = harness.cloud.volumes.open_writer(key, {"vda": volume}, migration=migration)
    write_point(session.disk("vda"), 0, noise(14))
    harness.cloud.volumes.close_writer(key)
    assert harness.read_volume(volume)[:200_000] == noise(14)
    assert not Path(address).exists()


def test_two_attempts_at_once_open_one_point(harness: LibvirtHarness, migration: str) -> None:
    """An orphaned attempt and its retry: both get the same point, and one close ends it."""
    ref = harness.make_vm([(SIZE, "qcow2")], running=True)
    key = point_key(migration, 1)
    told: list[OpenPoint] = []
    clouds = [harness.fresh_cloud() for _ in range(2)]

    def attempt(number: int) -> None:
        told.append(clouds[number].points.open(ref, ["vda"], key=key, migration=migration))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 2
    assert told[0] == told[1]
    assert read_point(told[0].disk("vda")) == bytes(SIZE)
    harness.cloud.points.close(ref, key, migration=migration)
    assert harness.cloud.points.owned(ref, migration) == [key]


def test_two_attempts_at_once_open_one_writer(harness: LibvirtHarness, migration: str) -> None:
    spec = VolumeSpec(
        name=volume_name("vm", "vda", migration), pool="default", size_bytes=SIZE, format="raw", migration=migration
    )
    volume = harness.cloud.volumes.ensure_volume(spec)
    told: list[WriterSession] = []
    clouds = [harness.fresh_cloud() for _ in range(2)]

    def attempt(number: int) -> None:
        volumes = clouds[number].volumes
        told.append(volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 2
    assert told[0] == told[1]
    harness.cloud.volumes.close_writer(writer_key(migration))


def test_a_killed_session_leaves_no_socket_behind(harness: LibvirtHarness, kvm_lab: KvmLab, migration: str) -> None:
    """Nobody opens it again: what it listened on goes with the close that finds no session."""
    ref = harness.make_vm([(SIZE, "raw")])
    key = point_key(migration, 1)
    endpoint = harness.cloud.points.open(ref, ["vda"], key=key, migration=migration).disk("vda").endpoint
    assert isinstance(endpoint, NbdEndpoint)
    assert endpoint.unix_path is not None
    socket = Path(endpoint.unix_path)
    assert socket.exists()
    (pid,) = [int(path.read_text()) for path in (kvm_lab.cloud("a").run / "qemu").glob("*.pid") if key in path.name]
    subprocess.run(["kill", "-9", str(pid)], check=True)
    deadline = time.monotonic() + 60
    while any(key in domain.name() for domain in harness.conn.listAllDomains()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    harness.cloud.points.close(ref, key, migration=migration)
    assert not socket.exists()
    harness.cloud.compute.start(ref)
