"""Hosts that give disks of stopped VMs through libvirt's streams only: contract, bytes, holes, faults, a whole copy."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.kvm import KvmLab
from tests.contract.blockio import extents_of, opened, read_device, read_point
from tests.contract.harness import Harness
from tests.contract.libvirt_harness import LibvirtHarness
from tests.contract.stream_harness import StreamHarness
from tests.contract.suites import PointInTimeContract
from whimbrel.dataplane import Manifest, copy, open_device
from whimbrel.errors import BaseLost, Conflict, NotFound, PermissionDenied, Unavailable, Unsupported
from whimbrel.model.endpoint import FileEndpoint, LibvirtVolumeEndpoint
from whimbrel.model.extent import Extent
from whimbrel.model.naming import migration_id, point_key, volume_name, writer_key
from whimbrel.model.point import DiskPoint, OpenPoint
from whimbrel.model.vm import VolumeSpec
from whimbrel.precheck.suggest import suggest_mode

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = 16 * MIB
STREAM = 24 * MIB


@pytest.fixture
def streams(kvm_lab: KvmLab) -> Iterator[StreamHarness]:
    harness = StreamHarness(kvm_lab)
    yield harness
    harness.end()


class TestStreamPoint(PointInTimeContract):
    disk_format = "raw"

    @pytest.fixture
    def harness(self, streams: StreamHarness) -> Harness:
        return streams

    def test_a_disk_being_written_has_no_point(self, harness: Harness, migration: str) -> None:
        assert isinstance(harness, StreamHarness)
        ref = self.vm(harness)
        vm = harness.cloud.compute.inspect(ref)
        with pytest.raises(Unsupported):
            harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        writing = harness.over_nbd().volumes
        writing.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        with pytest.raises(Conflict):
            self.open(harness, ref, migration, 1)
        writing.close_writer(writer_key(migration))
        assert read_point(self.open(harness, ref, migration, 1).disk("vda")) == bytes(vm.disk("vda").size_bytes)


def path_of(harness: LibvirtHarness, ref: str, disk: str = "vda") -> Path:
    return Path(harness.cloud.compute.inspect(ref).disk(disk).location)


def opened_point(harness: LibvirtHarness, ref: str, migration: str, *disks: str) -> OpenPoint:
    return harness.cloud.points.open(ref, disks or ("vda",), key=point_key(migration, 1), migration=migration)


def scatter(path: Path, size: int, seed: int) -> bytes:
    """Write blocks with holes between, aligned and not; returns the content."""
    chance = random.Random(seed)
    with path.open("r+b") as image:
        for _ in range(12):
            image.seek(chance.randrange(size - 300_000))
            image.write(chance.randbytes(chance.randint(1, 300_000)))
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_extents_tell_only_true_zeros_and_reads_are_the_image(
    streams: StreamHarness, migration: str, seed: int
) -> None:
    ref = streams.make_vm([(SIZE, "raw")])
    content = scatter(path_of(streams, ref), SIZE, seed)
    disk = opened_point(streams, ref, migration).disk("vda")
    assert read_point(disk) == content
    extents = extents_of(disk)
    assert [extents[0].start, *(one.end for one in extents)] == [*(one.start for one in extents), SIZE]
    assert all(not any(content[one.start : one.end]) for one in extents if one.zero)
    assert any(one.zero for one in extents)
    chance = random.Random(seed)
    with opened(disk.endpoint) as device:
        for _ in range(20):
            start = chance.randrange(SIZE)
            length = chance.randint(0, min(SIZE - start, 2 * MIB))
            assert read_device(device, start, length) == content[start : start + length]
            part = list(device.extents(start, length))
            assert sum(one.length for one in part) == length
            assert all(not any(content[one.start : one.end]) for one in part if one.zero)


def test_a_big_hole_is_told_at_once(streams: StreamHarness, migration: str) -> None:
    ref = streams.make_vm([(1 << 40, "raw")])
    with path_of(streams, ref).open("r+b") as image:
        image.seek(1 << 39)
        image.write(b"x" * 4096)
    disk = opened_point(streams, ref, migration).disk("vda")
    with opened(disk.endpoint) as device:
        extents = list(device.extents())
        assert read_device(device, 1 << 39, 4096) == b"x" * 4096
    assert extents[0] == Extent(0, 1 << 39, zero=True)
    assert sum(one.length for one in extents if not one.zero) <= MIB
    assert extents[-1].end == 1 << 40


def test_a_pool_without_sparse_streams_is_all_data(
    streams: StreamHarness, migration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import libvirt

    ref = streams.make_vm([(MIB, "raw")])
    content = b"seven" * 1000
    streams.guest_write(ref, "vda", 300_000, content)
    disk = opened_point(streams, ref, migration).disk("vda")
    # An unknown flag is refused by the daemon itself with the error that older ones give for the sparse flag.
    monkeypatch.setattr(libvirt, "VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM", 1 << 20)
    assert [one.zero for one in extents_of(disk)] == [False]
    assert read_point(disk) == bytes(300_000) + content + bytes(MIB - 300_000 - len(content))


def test_the_daemon_dies_while_a_disk_is_read(streams: StreamHarness, kvm_lab: KvmLab, migration: str) -> None:
    ref = streams.make_vm([(SIZE, "raw")])
    content = scatter(path_of(streams, ref), SIZE, 9)
    disk = opened_point(streams, ref, migration).disk("vda")
    with opened(disk.endpoint) as device:
        read = read_device(device, 0, SIZE // 2)
        kvm_lab.kill_libvirtd("a")
        with pytest.raises(Unavailable):
            read_device(device, SIZE // 2, MIB)
        kvm_lab.start_libvirtd("a")
        assert read + read_device(device, SIZE // 2) == content
    assert streams.fresh_cloud().points.owned(ref, migration) == [point_key(migration, 1)]


def test_the_daemon_dies_and_comes_back_between_two_reads(
    streams: StreamHarness, kvm_lab: KvmLab, migration: str
) -> None:
    ref = streams.make_vm([(SIZE, "raw")])
    content = scatter(path_of(streams, ref), SIZE, 10)
    with opened(opened_point(streams, ref, migration).disk("vda").endpoint) as device:
        read = read_device(device, 0, 5 * MIB)
        kvm_lab.kill_libvirtd("a")
        kvm_lab.start_libvirtd("a")
        assert read + read_device(device, 5 * MIB) == content


def test_a_vm_that_is_started_spoils_the_point(
    streams: StreamHarness, migration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivers.libvirt.stream_reader.OFF_CHECK_S", -1.0)
    ref = streams.make_vm([(MIB, "raw")])
    disk = opened_point(streams, ref, migration).disk("vda")
    with opened(disk.endpoint) as device:
        read_device(device)
        streams.domain(ref).create()
        with pytest.raises(Conflict) as started:
            read_device(device)
    assert "started" in started.value.message
    with pytest.raises(Conflict):
        open_device(disk.endpoint)
    with pytest.raises(Unsupported) as running:
        opened_point(streams, ref, migration)
    assert "mode: cold" in running.value.action


def test_what_streams_cannot_do_is_said(streams: StreamHarness, migration: str, tmp_path: Path) -> None:
    ref = streams.make_vm([(MIB, "raw"), (MIB, "qcow2")])
    with pytest.raises(Unsupported) as image:
        opened_point(streams, ref, migration, "vda", "vdb")
    assert "qemu-img convert" in image.value.action
    with pytest.raises(BaseLost):
        streams.cloud.points.open(ref, ["vda"], key=point_key(migration, 2), since="x", migration=migration)
    assert list(streams.cloud.points.owned(ref, migration)) == []
    disk = opened_point(streams, ref, migration).disk("vda")
    with opened(disk.endpoint) as device:
        assert device.read_only
        lane = device.lane()
        lane.submit_write(0, memoryview(b"x"))
        with pytest.raises(PermissionDenied):
            lane.reap()
        lane.submit_read(MIB - 1, memoryview(bytearray(2)))
        with pytest.raises(Unavailable):
            lane.reap()
    volume = streams.cloud.volumes.ensure_volume(
        VolumeSpec(
            name=volume_name("vm", "vda", migration), pool="default", size_bytes=MIB, format="raw", migration=migration
        )
    )
    with pytest.raises(Unsupported):
        streams.cloud.volumes.open_writer(writer_key(migration), {"vda": volume}, migration=migration)


def test_an_image_outside_of_all_pools_is_named(streams: StreamHarness, migration: str, tmp_path: Path) -> None:
    ref = streams.make_vm([(MIB, "raw")])
    outside = tmp_path / "outside.raw"
    outside.write_bytes(bytes(MIB))
    domain = streams.domain(ref)
    streams.conn.defineXML(domain.XMLDesc().replace(str(path_of(streams, ref)), str(outside)))
    with pytest.raises(Unsupported) as lost:
        opened_point(streams, ref, migration)
    assert "pool" in lost.value.action


def test_facts_of_a_host_with_streams_only(streams: StreamHarness) -> None:
    ref = streams.make_vm([(MIB, "raw")], running=True)
    able = streams.cloud.capabilities()
    assert (able.roles, able.live_points, able.change_tracking) == (frozenset({"source"}), False, False)
    facts = streams.cloud.source_facts(ref)
    assert facts.capabilities == able
    assert facts.vm is not None
    assert suggest_mode(facts.vm, able)[0] == "cold"
    assert streams.cloud.target_facts().capabilities == able


def test_an_endpoint_holds_no_address_and_needs_its_cloud(streams: StreamHarness, migration: str) -> None:
    ref = streams.make_vm([(MIB, "raw")])
    endpoint = opened_point(streams, ref, migration).disk("vda").endpoint
    assert isinstance(endpoint, LibvirtVolumeEndpoint)
    assert "qemu" not in endpoint.model_dump_json()
    assert (
        DiskPoint.model_validate_json(
            DiskPoint(key="vda", size_bytes=MIB, endpoint=endpoint).model_dump_json()
        ).endpoint
        == endpoint
    )
    with pytest.raises(NotFound):
        open_device(endpoint.model_copy(update={"point": point_key(migration_id("another", "x"), 1)}))


def test_a_stopped_vm_is_copied_to_another_cloud(
    streams: StreamHarness, kvm_lab: KvmLab, migration: str, tmp_path: Path
) -> None:
    ref = streams.make_vm([(STREAM, "raw"), (SIZE, "raw")])
    contents = {key: scatter(path_of(streams, ref, key), size, 3) for key, size in (("vda", STREAM), ("vdb", SIZE))}
    point = opened_point(streams, ref, migration, "vda", "vdb")
    target = LibvirtHarness(kvm_lab, "b")
    try:
        volumes = {
            disk.key: target.cloud.volumes.ensure_volume(
                VolumeSpec(
                    name=volume_name("vm", disk.key, migration),
                    pool="default",
                    size_bytes=disk.size_bytes,
                    format="qcow2",
                    migration=migration,
                )
            )
            for disk in point.disks
        }
        session = target.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        for disk in point.disks:
            with opened(disk.endpoint) as source, opened(session.disk(disk.key).endpoint) as sink:
                with Manifest.open(tmp_path / disk.key, disk.size_bytes) as manifest:
                    copied = copy(
                        source, sink, extents=source.extents(), manifest=manifest, epoch="1", target_is_zero=True
                    )
            assert copied.read_bytes < disk.size_bytes
        target.cloud.volumes.close_writer(session.key)
        for key, volume in volumes.items():
            assert target.read_volume(volume) == contents[key]
    finally:
        target.end()
    streams.cloud.points.close(ref, point.key, migration=migration)
    assert list(streams.cloud.points.owned(ref, migration)) == []


def test_many_lanes_read_at_once(streams: StreamHarness, migration: str) -> None:
    ref = streams.make_vm([(SIZE, "raw")])
    content = scatter(path_of(streams, ref), SIZE, 12)
    parts: dict[int, bytes] = {}
    with opened(opened_point(streams, ref, migration).disk("vda").endpoint) as device:

        def read(start: int) -> None:
            parts[start] = read_device(device, start, SIZE // 4)

        threads = [threading.Thread(target=read, args=(start,)) for start in range(0, SIZE, SIZE // 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert b"".join(parts[start] for start in sorted(parts)) == content


def test_plain_files_still_open(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(b"plain" * 100)
    with opened(FileEndpoint(path=str(tmp_path / "x.raw"))) as device:
        assert read_device(device, 0, 5) == b"plain"
