"""Activities that look at clouds: health checks, the probed path, the ledger held against what is there."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

import activities.probe
from activities.compute import ComputeActivities
from activities.health import HealthActivities
from activities.ledger import LedgerActivities
from activities.point import PointActivities
from activities.probe import probe_path
from drivers.memory import MemoryCloud, Scenario
from whimbrel.contracts.activity_io import HealthInput, OpenPointInput, ReadBackInput, VmInput
from whimbrel.errors import Conflict, GuestUnbootable, NotReady, QuotaExceeded, Unavailable, Unsupported
from whimbrel.model.ledger import Fate, LedgerEntry
from whimbrel.model.naming import point_key, shadow_key
from whimbrel.model.plan import HealthPolicy, VmPlan
from whimbrel.model.point import OpenPoint
from whimbrel.model.vm import Power, VolumeSpec
from whimbrel.ports.cloud import Cloud

MIB = 1 << 20
MIGRATION = "0a1b2c3d4e"


class _Clouds:
    def get(self, name: str) -> Cloud:
        return MemoryCloud(name)

    def names(self) -> list[str]:
        return []


@pytest.fixture
def cloud() -> Iterator[str]:
    name = f"looked-{uuid.uuid4().hex[:8]}"
    yield name
    MemoryCloud.reset(name)


def _check(cloud: str, ref: str, mark: str = "", **check: Any) -> tuple[str, ...]:
    policy = HealthPolicy.model_validate({"checks": [check] if check else []})
    wanted = HealthInput(cloud=cloud, ref=ref, policy=policy, console_mark=mark)
    return ActivityEnvironment().run(HealthActivities(_Clouds()).check, wanted).passed


def test_a_vm_that_does_not_run_is_not_well(cloud: str) -> None:
    vm = Scenario(cloud).add_vm("a", running=False)
    with pytest.raises(NotReady, match="not running"):
        _check(cloud, vm.ref)
    Scenario(cloud).set_power("a", Power.RUNNING)
    assert _check(cloud, vm.ref) == ("VM runs",)


def test_tcp(cloud: str) -> None:
    vm = Scenario(cloud).add_vm("a")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with pytest.raises(NotReady, match="does not accept yet"):
            _check(cloud, vm.ref, kind="tcp", host="127.0.0.1", port=port)
        listener.listen()
        assert "accepts" in _check(cloud, vm.ref, kind="tcp", host="127.0.0.1", port=port)[1]


def test_command(cloud: str) -> None:
    vm = Scenario(cloud).add_vm("a")
    assert len(_check(cloud, vm.ref, kind="command", argv=[sys.executable, "-c", ""])) == 2
    with pytest.raises(NotReady, match=r"exit code 3.*last=why not"):
        _check(
            cloud,
            vm.ref,
            kind="command",
            argv=[sys.executable, "-c", "import sys; print('why not', file=sys.stderr); sys.exit(3)"],
        )
    with pytest.raises(GuestUnbootable, match="does not exist"):
        _check(cloud, vm.ref, kind="command", argv=["/nonexistent/check"])


def test_agent(cloud: str) -> None:
    vm = Scenario(cloud).add_vm("a")
    with pytest.raises(NotReady, match="agent"):
        _check(cloud, vm.ref, kind="agent")
    Scenario(cloud).set_guest("a", agent=True)
    assert _check(cloud, vm.ref, kind="agent")[1] == "guest agent answers"


def test_only_the_console_after_the_mark_counts(cloud: str) -> None:
    """The log may go on from an earlier boot, even one at the source."""
    vm = Scenario(cloud).add_vm("a")
    Scenario(cloud).set_guest("a", console="old boot\nlogin:\n")
    assert _check(cloud, vm.ref, kind="console", pattern="login:")
    with pytest.raises(NotReady):
        _check(cloud, vm.ref, mark="old boot\nlogin:\n", kind="console", pattern="login:")
    Scenario(cloud).set_guest("a", console="old boot\nlogin:\nnew boot\nlogin:")
    assert _check(cloud, vm.ref, mark="old boot\nlogin:\n", kind="console", pattern="login:")
    Scenario(cloud).set_capabilities(console=False)
    with pytest.raises(GuestUnbootable, match="cannot be read"):
        _check(cloud, vm.ref, kind="console", pattern="login:")


@pytest.fixture
def path(cloud: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, VmPlan]]:
    """A source with a VM, a target, and the plan between them."""
    monkeypatch.setattr(activities.probe, "DIRTY_WATCH_S", 0.05)
    target = f"{cloud}-target"
    Scenario(cloud).add_vm("a", disks=((4 * MIB, "qcow2"), (MIB, "raw")))
    Scenario(cloud).write_disk("a", "vda", 0, os.urandom(MIB))
    plan = VmPlan(plan="p", vm="a", source=cloud, target=target, storage={"*": "default"}, networks={"*": "default"})
    yield cloud, target, plan
    MemoryCloud.reset(target)


def test_the_probe_reads_writes_and_removes(path: tuple[str, str, VmPlan], tmp_path: Path) -> None:
    source, target, plan = path
    facts = MemoryCloud(source).source_facts("a")
    found = probe_path(
        plan,
        MemoryCloud(source),
        MemoryCloud(target),
        facts=facts,
        migration=MIGRATION,
        state_dir=tmp_path / "new",
        patient=True,
    )
    assert found.probed
    assert found.reads_source
    assert found.writes_target
    assert found.why_not == ""
    assert found.read_bytes_per_s
    assert found.write_bytes_per_s
    assert found.dirty_bytes_per_s == 0
    assert Scenario(source).leftovers(MIGRATION) == []
    assert Scenario(target).leftovers(MIGRATION) == []


@pytest.mark.parametrize(
    ("side", "port", "method"),
    [
        ("source", "points", "open"),
        ("target", "volumes", "ensure_volume"),
        ("target", "volumes", "open_writer"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_probe_that_fails_says_so_and_removes_all(
    path: tuple[str, str, VmPlan], tmp_path: Path, side: str, port: str, method: str, when: Any
) -> None:
    source, target, plan = path
    facts = MemoryCloud(source).source_facts("a")
    Scenario(source if side == "source" else target).fail(port, method, lambda: Unavailable("cut"), when=when)
    found = probe_path(
        plan,
        MemoryCloud(source),
        MemoryCloud(target),
        facts=facts,
        migration=MIGRATION,
        state_dir=tmp_path,
        patient=False,
    )
    assert "cut" in found.why_not
    assert (found.reads_source, found.writes_target) == ((side != "source"), (side != "target"))
    assert Scenario(source).leftovers(MIGRATION) == []
    assert Scenario(target).leftovers(MIGRATION) == []


@pytest.mark.parametrize(("side", "port"), [("source", "points"), ("target", "volumes")])
def test_a_patient_probe_lets_a_fault_of_the_moment_be_tried_again(
    path: tuple[str, str, VmPlan], tmp_path: Path, side: str, port: str
) -> None:
    source, target, plan = path
    facts = MemoryCloud(source).source_facts("a")
    method = "open" if side == "source" else "open_writer"
    Scenario(source if side == "source" else target).fail(port, method, lambda: Unavailable("cut"))
    with pytest.raises(Unavailable, match="cut"):
        probe_path(
            plan,
            MemoryCloud(source),
            MemoryCloud(target),
            facts=facts,
            migration=MIGRATION,
            state_dir=tmp_path,
            patient=True,
        )
    assert Scenario(source).leftovers(MIGRATION) == []
    assert Scenario(target).leftovers(MIGRATION) == []


def test_what_is_not_ready_is_asked_again_and_not_undone(
    path: tuple[str, str, VmPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, plan = path
    monkeypatch.setattr(activities.probe, "ASK_EVERY_S", 0.01)
    facts = MemoryCloud(source).source_facts("a")
    slow = {(source, "points"): ("open", "close", "forget"), (target, "volumes"): ("open_writer", "close_writer")}
    for (cloud, port), methods in slow.items():
        for method in methods:
            Scenario(cloud).fail(port, method, lambda: NotReady("it is being made"), when="after")
    sides = MemoryCloud(source), MemoryCloud(target)
    found = probe_path(plan, *sides, facts=facts, migration=MIGRATION, state_dir=tmp_path, patient=True)
    assert (found.reads_source, found.writes_target, found.why_not) == (True, True, "")
    assert Scenario(source).leftovers(MIGRATION) == Scenario(target).leftovers(MIGRATION) == []


def test_a_full_target_is_told(path: tuple[str, str, VmPlan], tmp_path: Path) -> None:
    source, target, plan = path
    Scenario(target).add_pool("default", MIB)
    facts = MemoryCloud(source).source_facts("a")
    found = probe_path(
        plan,
        MemoryCloud(source),
        MemoryCloud(target),
        facts=facts,
        migration=MIGRATION,
        state_dir=tmp_path,
        patient=False,
    )
    assert "no room" in found.why_not
    assert QuotaExceeded.__name__ not in found.why_not
    assert found.writes_target is False


def _entry(cloud: str, kind: Any, name: str, fate: Fate) -> LedgerEntry:
    return LedgerEntry(cloud=cloud, kind=kind, name=name, fate=fate, noted_at=datetime.now(UTC))


def test_the_ledger_is_read_back(path: tuple[str, str, VmPlan]) -> None:
    """Kept is not a leftover; what is there is told, noted or not; what is gone is noted so."""
    source, target, _ = path
    vm = MemoryCloud(source).compute.inspect("a")
    for name in ("kept", "forgotten", "never-noted"):
        spec = VolumeSpec(name=name, pool="default", size_bytes=MIB, format="raw", migration=MIGRATION)
        MemoryCloud(target).volumes.ensure_volume(spec)
    key = point_key(MIGRATION, 1)
    MemoryCloud(source).points.open(vm.ref, ("vda",), key=key, migration=MIGRATION)
    wanted = ReadBackInput(
        migration=MIGRATION,
        entries=(
            _entry(target, "volume", "kept", Fate.KEPT),
            _entry(target, "volume", "forgotten", Fate.CREATED),
            _entry(target, "volume", "never-made", Fate.INTENDED),
        ),
        source=source,
        target=target,
        source_ref=vm.ref,
        target_ref="no-such-vm",
    )
    result = ActivityEnvironment().run(LedgerActivities(_Clouds()).read_back, wanted)
    assert {entry.name: entry.fate for entry in result.entries} == {
        "kept": Fate.KEPT,
        "forgotten": Fate.CREATED,
        "never-made": Fate.GONE,
    }
    assert result.leftovers == tuple(
        sorted([f"point {key} on {source}", f"volume forgotten on {target}", f"volume never-noted on {target}"])
    )


def test_a_shadow_that_was_left_is_told(path: tuple[str, str, VmPlan]) -> None:
    source, target, _ = path
    Scenario(source).add_vm("off", disks=((MIB, "raw"),), running=False)
    vm, key = MemoryCloud(source).compute.inspect("off"), shadow_key(MIGRATION)
    MemoryCloud(source).shadows.open(key, vm, ("vda",), migration=MIGRATION)
    wanted = ReadBackInput(
        migration=MIGRATION,
        entries=(_entry(source, "shadow", key, Fate.CREATED),),
        source=source,
        target=target,
        source_ref=vm.ref,
        vm=vm,
    )
    ledger = LedgerActivities(_Clouds())
    left = ActivityEnvironment().run(ledger.read_back, wanted)
    assert left.leftovers == (f"shadow off-vda-shadow-{MIGRATION} on {source}",)
    assert [entry.fate for entry in left.entries] == [Fate.CREATED]
    MemoryCloud(source).shadows.drop(key, vm, ("vda",), migration=MIGRATION)
    gone = ActivityEnvironment().run(ledger.read_back, wanted)
    assert gone.leftovers == ()
    assert [entry.fate for entry in gone.entries] == [Fate.GONE]


def test_a_vm_is_removed_by_its_name_and_only_if_it_is_ours(cloud: str) -> None:
    Scenario(cloud).add_vm("a", running=False)
    compute = ComputeActivities(_Clouds())
    with pytest.raises(Conflict):
        ActivityEnvironment().run(compute.ensure_absent, VmInput(cloud=cloud, ref="a", migration=MIGRATION))
    gone = ActivityEnvironment().run(compute.ensure_absent, VmInput(cloud=cloud, ref="b", migration=MIGRATION))
    assert gone.note == "not there"


class _AtRest:
    """A cloud that says it can, and then opens a point of the running VM, or cannot after all."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def get(self, _: str) -> Any:
        return SimpleNamespace(capabilities=lambda: SimpleNamespace(rests=True), points=SimpleNamespace(open=self.open))

    def names(self) -> list[str]:
        return []

    def open(self, *_: Any, **wanted: Any) -> Any:
        assert wanted["resting"]
        if isinstance(self.answer, Exception):
            raise self.answer
        return OpenPoint(
            key="k", vm_ref="r", kind=self.answer, taken_at=datetime(2026, 11, 26, tzinfo=UTC), token=None, disks=()
        )


@pytest.mark.parametrize("answer", ["live", Unsupported("behind a mover"), "cold"])
def test_a_point_of_a_running_vm_is_no_point_at_rest(answer: Any) -> None:
    """What the guest writes until it is off would be lost."""
    activity = PointActivities(_AtRest(answer)).open_at_rest
    wanted = OpenPointInput(cloud="c", ref="r", disks=("vda",), key="k", migration=MIGRATION)
    if answer == "live":
        with pytest.raises(Conflict, match="would be missing"):
            ActivityEnvironment().run(activity, wanted)
        return
    point = ActivityEnvironment().run(activity, wanted).point
    assert (point is not None) is (answer == "cold")
