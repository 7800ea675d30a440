"""While Nova's guest runs on a volume that is still being imported, everything around it dies: no write is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.ceph import RbdImages, RbdImports
from drivers.openstack import OpenStackCloud
from labs.openstack_stage import OpenStackStage
from tests.contract.openstack_harness import patiently
from tests.e2e.installation import Installation
from tests.e2e.remains import sessions
from tests.e2e.running import Running
from tests.e2e_openstack.kvm_site import KvmSite
from tests.e2e_openstack.nova_site import NovaSite, until
from tests.e2e_openstack.scene import Scene, SceneMaker
from whimbrel.errors import Unavailable
from whimbrel.model.progress import Phase
from whimbrel.model.vm import Power
from whimbrel.stream.control import ask

pytestmark = [pytest.mark.openstack, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]
CRAWL, WALK, RUN = 1e5, 1.5e5, 4e6
"""Bytes per second: of the hydration, of the execution; neither ends before the kills are done. And between them."""
WHILE_HYDRATING = ("gateway",) * 5 + ("worker",) * 3
WHILE_IMPORTING = ("gateway",) * 4 + ("execute",) * 4 + ("worker",) * 2 + ("qemu",) * 2
AWAY_S = 60.0


@pytest.fixture
def stage(installation: Installation) -> OpenStackStage:
    assert isinstance(installation.stage, OpenStackStage)
    return installation.stage


class Killer:
    """Kills what a streaming migration into Nova consists of, and sees that it comes back."""

    def __init__(self, scene: Scene, running: Running) -> None:
        self.scene, self.running = scene, running
        self.boots = 2
        site = scene.target
        assert isinstance(site, NovaSite)
        self.site = site
        access = {"conf": str(site.handle.ceph_conf), "user": site.handle.ceph_user}
        self.cloud = OpenStackCloud(
            "target",
            clouds_yaml_name=f"{site.handle.name}-member",
            config_file=site.handle.clouds_yaml,
            images=RbdImages(**access),
            pools={site.handle.volume_type: site.handle.pool},
            live=RbdImports(**access),
            gateway_address=scene.stage.openstack.host_address,
        )

    def kill(self, victim: str) -> None:
        """One of the four; returns when the next one lives."""
        kills: dict[str, Callable[[], None]] = {
            "gateway": self._gateway,
            "execute": self._execute,
            "worker": self.scene.installation.replace_worker,
            "qemu": self._qemu,
        }
        kills[victim]()

    def gateway(self) -> int:
        """The process that serves the disk; 0 when none answers."""
        control = self.scene.stage.directory / "state" / "sockets" / f"{self.running.migration}-vda.ctl"
        try:
            return int(ask(control, "status")["pid"])
        except Unavailable:
            return 0

    def _gateway(self) -> None:
        until(lambda: self.gateway() != 0, "a gateway answers")
        before = self.gateway()
        os.kill(before, signal.SIGKILL)
        until(lambda: self.gateway() not in {0, before}, "the next gateway answers")

    def _execute(self) -> None:
        worker = self.scene.installation.worker.process.pid
        until(lambda: processes("drivers.ceph.executing", worker) != [], "an execution runs")
        for pid in processes("drivers.ceph.executing", worker):
            os.kill(pid, signal.SIGKILL)

    def _qemu(self) -> None:
        server = self.site.server(self.scene.name)
        assert server is not None
        (pid,) = processes(f"-uuid {server.id}")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self.site.running(self.scene.name), "Nova has seen that QEMU died", 180)
        ref = server.metadata["whimbrel_ref"]
        until(lambda: self.cloud.compute.power(ref) is Power.OFF, "the server is off")
        patiently(lambda: self.cloud.compute.start(ref))
        self.boots += 1
        self.scene.wait_records(self.boots, 2)


def processes(words: str, parent: int | None = None) -> list[int]:
    """Processes whose command line has these words, of one parent if that is given."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words in line and parent in {None, above}:
            found.append(int(entry.name))
    return found


def test_kills_and_a_source_that_is_away(new_scene: SceneMaker, stage: OpenStackStage) -> None:
    chance = random.Random()
    scene = new_scene(source=KvmSite(stage, "a"))
    scene.boot(dirty_kib=64)
    running = scene.migrate("streaming", bandwidth_bytes_per_s=CRAWL)
    running.phase(Phase.HYDRATE, timeout_s=300)
    scene.wait_records(2, 3)
    killer = Killer(scene, running)
    (export,) = sessions(stage, "a", running.migration).values()
    os.kill(export, signal.SIGSTOP)
    try:
        time.sleep(AWAY_S)
    finally:
        os.kill(export, signal.SIGCONT)
    scene.wait_records(2, len(scene.boots()[-1].records) + 3)
    for victim in chance.sample(WHILE_HYDRATING, len(WHILE_HYDRATING)):
        time.sleep(chance.uniform(0.1, 3.0))
        killer.kill(victim)
    assert running.until(lambda _: True, "a status").hydrated_at is None
    running.say("set_bandwidth", bytes_per_s=RUN)
    running.step("import", timeout_s=240)
    running.say("set_bandwidth", bytes_per_s=WALK)
    for victim in chance.sample(WHILE_IMPORTING, len(WHILE_IMPORTING)):
        time.sleep(chance.uniform(0.1, 3.0))
        killer.kill(victim)
    assert running.until(lambda _: True, "a status").hydrated_at is None
    running.say("set_bandwidth", bytes_per_s=None)
    report = scene.confirm(running, timeout_s=400)
    scene.moved(running, report, last=killer.boots)
    told = scene.consoles.text(f"{scene.target.plan_name}/{scene.name}")
    assert "IOERR" not in told
    assert "I/O error" not in told
