"""What ``ServingPort`` promises; the export is a real streaming server in this process."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.suite import SIZE, ContractSuite
from whimbrel.errors import Conflict, NotFound, Unavailable, Unsupported
from whimbrel.model.endpoint import FileEndpoint, NbdEndpoint
from whimbrel.model.naming import point_key
from whimbrel.model.vm import Power, TargetDisk, TargetVm, VmSpec
from whimbrel.stream import ListenAt, StreamConfig, StreamServer

OTHER = "0123456789"
OFFSET = 300_000


def noise(key: str) -> bytes:
    return random.Random(key).randbytes(SIZE)


class Exports:
    """Streaming servers for the disks of one VM, sources and sockets in a directory with a short name."""

    def __init__(self, harness: Harness, target: TargetVm) -> None:
        self._harness = harness
        self._target = target
        self.directory = Path(tempfile.mkdtemp(prefix="whimbrel-serving-"))
        self._servers: list[StreamServer] = []
        for disk in target.disks:
            self._file(disk, "source").write_bytes(noise(disk.spec.key))

    def _file(self, disk: TargetDisk, kind: str) -> Path:
        return self.directory / f"{disk.spec.key}.{kind}"

    def target(self) -> TargetVm:
        """The VM on the exports."""
        return self._target.model_copy(update={"disks": tuple(self._served(disk) for disk in self._target.disks)})

    def _served(self, disk: TargetDisk) -> TargetDisk:
        endpoint = NbdEndpoint(unix_path=str(self._file(disk, "sock")), export=disk.spec.key, writable=True)
        return disk.model_copy(update={"served": endpoint})

    def start(self) -> None:
        """Serve, and return when all has arrived."""
        for disk in self._target.disks:
            config = StreamConfig(
                target_path=self._harness.cloud.serving.local_path(disk.volume),
                map_stem=str(self._file(disk, "map")),
                size_bytes=disk.volume.size_bytes,
                source=FileEndpoint(path=str(self._file(disk, "source"))),
                source_identity=disk.spec.key,
                listen=(ListenAt(unix_path=str(self._file(disk, "sock"))),),
                control_path=str(self._file(disk, "control")),
                export=disk.spec.key,
            )
            server = StreamServer(config)
            self._servers.append(server)
            deadline = time.monotonic() + 60
            while not server.status()["complete"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def stop(self) -> None:
        """Serve no more."""
        while self._servers:
            self._servers.pop().stop()


def patched(content: bytes, *writes: tuple[int, bytes]) -> bytes:
    changed = bytearray(content)
    for offset, data in writes:
        changed[offset : offset + len(data)] = data
    return bytes(changed)


class ServingContract(ContractSuite):
    disk_format = "raw"

    @contextmanager
    def served(self, harness: Harness, migration: str, disks: int = 1) -> Iterator[tuple[Exports, TargetVm, VmSpec]]:
        """A VM, defined and off, on exports that answer and are complete."""
        target = self.target(harness, migration, self.moved_vm(harness, disks))
        exports = Exports(harness, target)
        try:
            exports.start()
            yield exports, exports.target(), harness.cloud.compute.ensure_vm(exports.target())
        finally:
            exports.stop()
            shutil.rmtree(exports.directory)

    def test_capabilities_say_so(self, harness: Harness) -> None:
        assert harness.cloud.capabilities().serve_disks

    def test_a_volume_has_a_path(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        path = harness.cloud.serving.local_path(volume)
        assert Path(path).stat().st_size == SIZE
        assert harness.fresh_cloud().serving.local_path(volume) == path

    def test_the_client_is_a_user_of_this_host(self, harness: Harness) -> None:
        client = harness.cloud.serving.client()
        assert client is None or all(0 <= number < 1 << 32 for number in client)

    def test_a_volume_that_is_not_there_has_none(self, harness: Harness, migration: str) -> None:
        volume = self.volume(harness, migration)
        harness.cloud.volumes.ensure_absent(volume.name, volume.pool, migration=migration)
        with pytest.raises(NotFound):
            harness.cloud.serving.local_path(volume)

    def test_a_qcow2_volume_has_none(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.TWO_FORMATS)
        spec = self.volume_spec(harness, migration).model_copy(update={"format": "qcow2"})
        with pytest.raises(Unsupported):
            harness.cloud.serving.local_path(harness.cloud.volumes.ensure_volume(spec))

    def test_a_vm_does_not_start_without_its_export(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (exports, _, vm):
            exports.stop()
            with pytest.raises(Unavailable):
                harness.cloud.compute.start(vm.ref)
            assert harness.cloud.compute.power(vm.ref) is Power.OFF
            exports.start()
            harness.cloud.compute.start(vm.ref)
            assert harness.cloud.compute.power(vm.ref) is Power.RUNNING

    def test_a_running_vm_is_switched(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (exports, target, vm):
            harness.cloud.compute.start(vm.ref)
            assert list(harness.cloud.serving.served_disks(vm.ref)) == ["vda"]
            harness.guest_write(vm.ref, "vda", OFFSET, b"on the export")
            harness.cloud.serving.switch_disks(vm.ref, target.disks, migration=migration)
            exports.stop()
            assert list(harness.fresh_cloud().serving.served_disks(vm.ref)) == []
            assert harness.cloud.compute.power(vm.ref) is Power.RUNNING
            harness.guest_write(vm.ref, "vda", 2 * OFFSET, b"on the volume")
            expected = patched(noise("vda"), (OFFSET, b"on the export"), (2 * OFFSET, b"on the volume"))
            assert harness.read_volume(target.disks[0].volume) == expected
            harness.cloud.compute.force_off(vm.ref)
            harness.cloud.compute.start(vm.ref)
            harness.guest_write(vm.ref, "vda", 0, b"after a start")
            assert harness.read_volume(target.disks[0].volume) == patched(expected, (0, b"after a start"))

    def test_a_paused_vm_is_switched_and_stays_paused(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (exports, target, vm):
            harness.cloud.compute.start(vm.ref, paused=True)
            harness.guest_write(vm.ref, "vda", OFFSET, b"paused")
            harness.cloud.serving.switch_disks(vm.ref, target.disks, migration=migration)
            exports.stop()
            assert harness.cloud.compute.power(vm.ref) is Power.PAUSED
            harness.cloud.compute.resume(vm.ref)
            assert harness.cloud.compute.power(vm.ref) is Power.RUNNING
            assert harness.read_volume(target.disks[0].volume) == patched(noise("vda"), (OFFSET, b"paused"))

    def test_a_vm_that_is_off_is_switched(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (exports, target, vm):
            assert list(harness.cloud.serving.served_disks(vm.ref)) == ["vda"]
            harness.cloud.serving.switch_disks(vm.ref, target.disks, migration=migration)
            exports.stop()
            assert list(harness.cloud.serving.served_disks(vm.ref)) == []
            assert harness.cloud.compute.power(vm.ref) is Power.OFF
            harness.cloud.compute.start(vm.ref)
            assert harness.read_volume(target.disks[0].volume) == noise("vda")

    def test_the_definition_is_that_of_a_vm_never_served(self, harness: Harness, migration: str) -> None:
        plain = self.target(harness, migration, self.moved_vm(harness))
        usual = harness.cloud.compute.ensure_vm(plain)
        harness.cloud.compute.ensure_absent(usual.ref, migration=migration)
        exports = Exports(harness, plain)
        try:
            exports.start()
            vm = harness.cloud.compute.ensure_vm(exports.target())
            assert vm.definition_digest != usual.definition_digest
            harness.cloud.compute.start(vm.ref)
            harness.cloud.serving.switch_disks(vm.ref, exports.target().disks, migration=migration)
            assert harness.cloud.compute.inspect(vm.ref).definition_digest == usual.definition_digest
        finally:
            exports.stop()
            shutil.rmtree(exports.directory)

    def test_switching_twice_and_all_disks(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration, disks=2) as (exports, target, vm):
            harness.cloud.compute.start(vm.ref)
            harness.cloud.serving.switch_disks(vm.ref, target.disks[:1], migration=migration)
            assert list(harness.cloud.serving.served_disks(vm.ref)) == ["vdb"]
            for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
                cloud.serving.switch_disks(vm.ref, target.disks, migration=migration)
            exports.stop()
            harness.guest_write(vm.ref, "vdb", OFFSET, b"later")
            assert harness.read_volume(target.disks[0].volume) == noise("vda")
            assert harness.read_volume(target.disks[1].volume) == patched(noise("vdb"), (OFFSET, b"later"))
            assert set(harness.cloud.volumes.owned(migration)) == {disk.volume.name for disk in target.disks}

    def test_what_is_not_ours_is_left_alone(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (_, target, vm):
            with pytest.raises(Conflict):
                harness.cloud.serving.switch_disks(vm.ref, target.disks, migration=OTHER)
            strange = target.disks[0].spec.model_copy(update={"key": "vdz"})
            disks = [target.disks[0].model_copy(update={"spec": strange})]
            with pytest.raises(NotFound):
                harness.cloud.serving.switch_disks(vm.ref, disks, migration=migration)
            with pytest.raises(NotFound):
                harness.cloud.serving.switch_disks("no-such-vm", target.disks, migration=migration)
            with pytest.raises(NotFound):
                harness.cloud.serving.served_disks("no-such-vm")
            assert list(harness.cloud.serving.served_disks(vm.ref)) == ["vda"]

    def test_a_served_disk_has_no_points(self, harness: Harness, migration: str) -> None:
        with self.served(harness, migration) as (_, _, vm):
            harness.cloud.compute.start(vm.ref)
            with pytest.raises(Unsupported):
                harness.cloud.points.open(vm.ref, ["vda"], key=point_key(migration, 1), migration=migration)
