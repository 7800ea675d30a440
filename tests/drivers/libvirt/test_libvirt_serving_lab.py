"""Served disks and shadows with real servers and guests, and deaths in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from drivers.libvirt import patience
from drivers.libvirt.overlays import Merger
from labs.kvm import DiskSpec, KvmLab, LabGuest
from labs.kvm.records import read_image
from tests.contract.blockio import read_point, write_point
from tests.contract.libvirt_harness import LibvirtHarness
from tests.contract.suites.serving import Exports, noise, patched
from tests.contract.suites.suite import GRAIN, ContractSuite
from tests.drivers.libvirt.test_libvirt_faults_lab import killed_worker
from whimbrel.errors import NotReady, WhimbrelError
from whimbrel.model.naming import point_key, volume_name
from whimbrel.model.vm import Power, TargetDisk, TargetVm, VolumeSpec
from whimbrel.stream import ask

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = 64 << 20
STAGES = ("export", "in", "copying", "copy-ready", "out", "committing", "active-commit-ready", "defined")


class Server:
    """``python -m whimbrel.stream`` as a process of its own."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._config = directory / "stream.json"
        self._config.write_text(json.dumps(config))
        self._control = Path(config["control_path"])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "whimbrel.stream", str(self._config)]
        self._process = subprocess.Popen(command, cwd=REPOSITORY)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.status()
                return
            except WhimbrelError:
                assert time.monotonic() < deadline
                assert self._process.poll() is None
                time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        return ask(self._control, "status")

    def ask(self, verb: str, **arguments: object) -> None:
        ask(self._control, verb, **arguments)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


@pytest.fixture
def directory() -> Iterator[Path]:
    """On a real disk, with a name short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="whimbrel-serving-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["soon", "late"])
def test_a_guest_streams_in_and_is_switched(
    make_harness: Callable[..., LibvirtHarness],
    lab_guest: Callable[..., LabGuest],
    migration: str,
    directory: Path,
    long: bool,
) -> None:
    """The server is killed; ``long``: for so long that the VM is paused, and resumed by us."""
    source, target = make_harness("a"), make_harness("b")
    guest = lab_guest("a", disks=(DiskSpec(size_bytes=SIZE),), rate=20)
    guest.start("a")
    source.guest_write(source.conn.lookupByName(guest.name).UUIDString(), "vda", 40 << 20, os.urandom(16 << 20))
    guest.shutdown("a")
    vm = source.cloud.compute.inspect(guest.name)
    point = source.cloud.points.open(vm.ref, ["vda"], key=point_key(migration, 1), migration=migration)
    name = volume_name(vm.name, "vda", migration)
    volume = target.cloud.volumes.ensure_volume(
        VolumeSpec(name=name, pool="default", size_bytes=SIZE, format="raw", migration=migration)
    )
    path = target.cloud.serving.local_path(volume)
    socket = directory / "nbd"
    server = Server(
        directory,
        {
            "target_path": path,
            "map_stem": str(directory / "map"),
            "size_bytes": SIZE,
            "source": point.disk("vda").endpoint.model_dump(mode="json"),
            "source_identity": point.key,
            "listen": [{"unix_path": str(socket)}],
            "control_path": str(directory / "control"),
            "export": "vda",
            "bandwidth_bytes_per_s": 128 << 10,
        },
    )
    served = {"kind": "nbd", "unix_path": str(socket), "export": "vda"}
    wanted = TargetVm(
        migration=migration,
        name=vm.name,
        source=vm,
        disks=(TargetDisk.model_validate({"spec": vm.disks[0], "volume": volume, "served": served}),),
        nics=tuple(nic.model_copy(update={"network": target.network}) for nic in vm.nics),
    )
    try:
        server.start()
        made = target.cloud.compute.ensure_vm(wanted)
        target.cloud.compute.start(made.ref)
        guest.ping(timeout_s=90)
        before = guest.last_record()
        server.end()
        if long:
            deadline = time.monotonic() + patience.RECONNECT_DELAY_S + 20
            while target.cloud.compute.power(made.ref) is not Power.PAUSED:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with pytest.raises(NotReady):
                target.cloud.compute.resume(made.ref)
        time.sleep(2)
        server.start()
        if long:
            began_s = time.monotonic()
            target.cloud.compute.resume(made.ref)
            print(f"resumed in {time.monotonic() - began_s:.1f} s")  # noqa: T201
            assert target.cloud.compute.power(made.ref) is Power.RUNNING
        assert not server.status()["complete"], "it was killed in the middle"
        deadline = time.monotonic() + 120
        while guest.last_record() <= before + 10:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        steady = guest.acknowledged()[-1].up_s
        server.ask("set-bandwidth", bytes_per_s=None)
        while not server.status()["complete"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = guest.acknowledged()[-1].up_s
        target.cloud.serving.switch_disks(made.ref, wanted.disks, migration=migration)
        server.end(signal.SIGTERM)
        after = guest.last_record()
        time.sleep(2)
        assert guest.last_record() > after
        last = guest.stop_writing()
        acknowledged = guest.acknowledged()
        ups = [record.up_s for record in acknowledged if record.boot == 2 and record.up_s >= steady]
        pauses = [(later - earlier, later) for earlier, later in pairwise(ups)]
        pause_s = max(length for length, end in pauses if end >= began)
        # What a busy machine does to the guest without us.
        usual_s = max((length for length, end in pauses if end < began), default=0.0)
        print(f"longest time between two records at 20/s during and after the switch: {pause_s:.2f} s")  # noqa: T201
        assert pause_s < 2 + 2 * usual_s
        assert "IOERR" not in guest.console_text()
        records = read_image(Path(path))
        assert (records.last, records.bad_slots, records.lost(acknowledged), records.gaps()) == (last, (), [], [])
        content, original = target.read_volume(volume), read_point(point.disk("vda"))
        assert content[32 << 20 :] == original[32 << 20 :], "what the guest never wrote is the source's"
        assert list(target.cloud.volumes.owned(migration)) == [name]
    finally:
        server.end()
        target.cloud.compute.ensure_absent(vm.ref, migration=migration)
        source.cloud.points.close(vm.ref, point.key, migration=migration)


@pytest.mark.parametrize("goes_off", [False, True], ids=["on", "off"])
@pytest.mark.parametrize(
    "stage", [each if each in {"copy-ready", "out"} else pytest.param(each, marks=pytest.mark.slow) for each in STAGES]
)
def test_a_switch_is_continued(
    harness: LibvirtHarness, kvm_lab: KvmLab, migration: str, stage: str, goes_off: bool
) -> None:
    suite = ContractSuite()
    suite.disk_format = "raw"
    plain = suite.target(harness, migration, suite.moved_vm(harness))
    usual = harness.cloud.compute.ensure_vm(plain).definition_digest
    harness.cloud.compute.ensure_absent(plain.source.ref, migration=migration)
    exports = Exports(harness, plain)
    try:
        exports.start()
        target = exports.target()
        vm = harness.cloud.compute.ensure_vm(target)
        harness.cloud.compute.start(vm.ref)
        harness.guest_write(vm.ref, "vda", 1000, b"before")
        disks = [disk.model_dump(mode="json") for disk in target.disks]
        killed_worker(
            harness, kvm_lab, "switch", {"ref": vm.ref, "disks": disks, "migration": migration, "stage": stage}
        )
        harness.guest_write(vm.ref, "vda", 9 * GRAIN, b"in the middle")
        if goes_off:
            harness.cloud.compute.force_off(vm.ref)
        harness.fresh_cloud().serving.switch_disks(vm.ref, target.disks, migration=migration)
        exports.stop()
        expected = patched(noise("vda"), (1000, b"before"), (9 * GRAIN, b"in the middle"))
        assert harness.read_volume(target.disks[0].volume) == expected
        assert harness.cloud.compute.inspect(vm.ref).definition_digest == usual
        assert list(harness.cloud.volumes.owned(migration)) == [target.disks[0].volume.name]
        harness.cloud.compute.start(vm.ref)
        harness.guest_write(vm.ref, "vda", 0, b"at last")
        assert harness.read_volume(target.disks[0].volume) == patched(expected, (0, b"at last"))
    finally:
        exports.stop()
        shutil.rmtree(exports.directory)


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_a_killed_shadow_has_what_was_flushed(
    harness: LibvirtHarness, kvm_lab: KvmLab, migration: str, disk_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 << 20
    vm = harness.cloud.compute.inspect(harness.make_vm([(size, disk_format)]))
    key = f"whimbrel-{migration}-shadow"
    expected = bytearray(size)
    session = harness.cloud.shadows.open(key, vm, ["vda"], migration=migration)
    for number in range(20):
        data = f"record {number}".encode() * 100
        write_point(session.disk("vda"), number * 150_000, data)
        expected[number * 150_000 : number * 150_000 + len(data)] = data
    os.kill(int((kvm_lab.cloud("a").run / "qemu" / f"{key}.pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while key in {domain.name() for domain in harness.conn.listAllDomains()}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    session = harness.cloud.shadows.open(key, vm, ["vda"], migration=migration)
    assert read_point(session.disk("vda")) == expected
    for step in ("_compare", "_commit"):  # the caller dies in the middle, and before the overlay is removed
        with monkeypatch.context() as dying:
            dying.setattr(Merger, step, lambda *_: sys.exit("died"))
            with pytest.raises(SystemExit):
                harness.cloud.shadows.merge(key, vm, ["vda"], migration=migration)
        assert len(harness.cloud.shadows.owned(vm, migration)) == 1
    assert harness.cloud.shadows.merge(key, vm, ["vda"], migration=migration) > 0
    assert harness.read_disk(vm.ref, "vda") == expected
    assert list(harness.cloud.shadows.owned(vm, migration)) == []
