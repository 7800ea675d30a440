"""The run over all rules: order, stages, ignore, and that nothing stops it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.precheck.handover_cases import shared
from tests.precheck.healthy import facts, healthy
from whimbrel import precheck
from whimbrel.model.facts import (
    AccessFacts,
    DiskFacts,
    FitFacts,
    HandoverFacts,
    NetworkFacts,
    PathFacts,
    PoolFacts,
    SourceFacts,
    TargetFacts,
)
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.model.plan import Companion, VmPlan, Window
from whimbrel.model.quota import Limits, Quota, VmSize
from whimbrel.model.vm import Capabilities, DiskSpec, NicSpec, Power, VmSpec
from whimbrel.precheck import handover, registry
from whimbrel.precheck.registry import RULES, run_rules
from whimbrel.precheck.rule import Answer, Rule


def test_ids_are_unique_and_well_formed() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*\.[a-z]+(-[a-z]+)*", one) for one in ids)


def test_enough_rules_of_every_severity() -> None:
    assert len(RULES) >= 35
    assert {rule.severity for rule in RULES} == set(Severity)


def test_every_rule_is_explained() -> None:
    for rule in RULES:
        assert rule.title
        assert rule.explanation.endswith("."), rule.id
        assert rule.stages


def _modules_with_rules() -> list[Any]:
    """Every module of the package that defines a rule, also one that the registry does not know of."""
    modules = [import_module(f"{precheck.__name__}.{found.name}") for found in iter_modules(precheck.__path__)]
    return [module for module in modules if any(isinstance(value, Rule) for value in vars(module).values())]


@pytest.mark.parametrize("module", _modules_with_rules(), ids=lambda module: module.__name__)
def test_no_rule_is_forgotten(module: Any) -> None:
    """Each rule that a module defines is in the list."""
    defined = {value.id for value in vars(module).values() if isinstance(value, Rule)}
    assert defined
    assert defined <= {rule.id for rule in RULES}


def test_healthy_facts_give_ok_only() -> None:
    findings = run_rules(healthy())
    assert {finding.outcome for finding in findings} == {"ok"}
    assert {finding.rule for finding in findings} == {rule.id for rule in RULES if "start" in rule.stages}


def test_worst_comes_first() -> None:
    findings = run_rules(
        facts(
            source__tpm=True, source__cpu_pinning=True, target__vcpus_max=1, target__machines=(), path__latency_s=None
        )
    )
    shown = [(finding.outcome, finding.severity.value) for finding in findings if finding.outcome != "ok"]
    assert shown == [
        ("found", "block"),
        ("unknown", "block"),
        ("found", "warn"),
        ("unknown", "warn"),
        ("found", "info"),
    ]
    assert findings[-1].outcome == "ok"


def test_what_is_not_copied_is_not_judged_by_the_copy() -> None:
    """Mode dual-attach needs no room at the target, no format it makes, and no measured path."""
    there = shared(
        target__pools__0__free_bytes=0, target__capabilities__disk_formats=(), path=PathFacts(tools={"x": "1"})
    )
    findings = {finding.rule: finding for finding in run_rules(there)}
    assert [rule for rule, finding in findings.items() if finding.blocks] == []
    assert findings["storage.free-space"].outcome == "ok"
    assert {rule.id for rule in RULES} >= handover.ABOUT_COPIES
    assert findings["forecast.outage"].outcome == "ok"


def test_ignored_block_is_accepted_and_blocks_no_more() -> None:
    blocked = facts(source__passthrough=("usb 1:2",))
    assert [finding.rule for finding in run_rules(blocked) if finding.blocks] == ["source.passthrough"]
    accepted = facts(source__passthrough=("usb 1:2",), plan__ignore=("source.passthrough",))
    findings = {finding.rule: finding for finding in run_rules(accepted)}
    assert findings["source.passthrough"].outcome == "accepted"
    assert "usb 1:2" in findings["source.passthrough"].found
    assert not any(finding.blocks for finding in findings.values())


def test_ignoring_a_warning_keeps_it_shown() -> None:
    findings = {f.rule: f for f in run_rules(facts(source__tpm=True, plan__ignore=("source.tpm",)))}
    assert findings["source.tpm"].outcome == "found"


def test_cutover_asks_only_what_may_have_changed() -> None:
    asked = {finding.rule for finding in run_rules(facts(stage="cutover"))}
    assert {
        "connect.source",
        "connect.target",
        "path.read",
        "path.write",
        "source.power",
        "source.locked",
        "source.running-job",
        "target.name-free",
        "network.mac",
        "storage.free-space",
        "target.memory",
        "window.open",
        "window.length",
    } <= asked
    assert not asked & {"disk.tracking", "target.leftovers", "forecast.baseline", "storage.headroom", "path.bandwidth"}


def test_planning_needs_no_data_path() -> None:
    planned = run_rules(facts(stage="plan", path=PathFacts(), plan__window=Window()))
    assert [finding for finding in planned if finding.outcome != "ok"] == []


def test_two_clouds_that_do_not_answer_give_two_findings_and_no_noise_of_blocks() -> None:
    dead = facts(
        source__reachable=False, source__vm=None, source__disks=(), target__reachable=False, target__capabilities=None
    )
    assert {finding.rule for finding in run_rules(dead) if finding.blocks} == {"connect.source", "connect.target"}


def test_a_rule_that_raises_is_named_and_the_others_still_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: PrecheckFacts) -> Answer:
        raise ZeroDivisionError("x")

    spoilt = tuple(replace(rule, judge=broken) if rule.id == "source.tpm" else rule for rule in RULES)
    monkeypatch.setattr(registry, "RULES", spoilt)
    findings = {finding.rule: finding for finding in run_rules(healthy())}
    assert findings["source.tpm"].outcome == "unknown"
    assert "ZeroDivisionError" in findings["source.tpm"].found
    assert "source.tpm" in findings["source.tpm"].action
    assert len([finding for finding in findings.values() if finding.outcome == "ok"]) == len(findings) - 1


_TEXT = st.text(max_size=8)
_NAME = (
    st.sampled_from(["", "a", "b", "*", "virtio", "raw", "x86_64", "5.1", "10.0.0.1", "10.0.0.0/8", "::1/64"]) | _TEXT
)
_NAMES = st.lists(_NAME, max_size=3).map(tuple)
_BYTES = st.integers(min_value=-1, max_value=1 << 80)
_RATE = st.none() | st.floats(allow_nan=True, allow_infinity=True)
_CLOCK = st.none() | st.datetimes(timezones=st.none() | st.just(UTC))
_MAP = st.dictionaries(_NAME, _NAME, max_size=3)


def _any(model: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a model with these fields drawn; the others are booleans where they default to one."""
    for name, field in model.model_fields.items():
        if name not in fields and isinstance(field.default, bool):
            fields[name] = st.booleans()
    return st.builds(model.model_construct, **fields)


_CAN = _any(
    Capabilities,
    kind=_TEXT,
    roles=st.frozensets(st.sampled_from(["source", "target"])),
    disk_formats=st.lists(st.sampled_from(["raw", "qcow2"]), max_size=2).map(tuple),
)
_DISK = _any(
    DiskSpec,
    key=_NAME,
    size_bytes=_BYTES,
    format=st.sampled_from(["raw", "qcow2", "qcow2-v2", "other"]),
    bus=_NAME,
    pool=st.none() | _NAME,
    allocated_bytes=st.none() | _BYTES,
)
_NIC = _any(NicSpec, key=_NAME, mac=_NAME, network=_NAME, addresses=_NAMES)
_VM = _any(
    VmSpec,
    ref=_NAME,
    name=_NAME,
    power=st.sampled_from(Power),
    vcpus=_BYTES,
    memory_bytes=_BYTES,
    arch=_NAME,
    machine=_NAME,
    disks=st.lists(_DISK, max_size=3).map(tuple),
    nics=st.lists(_NIC, max_size=3).map(tuple),
)
_DISK_FACTS = _any(
    DiskFacts, key=_NAME, chain_shared_with=_NAMES, image_shared_with=_NAMES, stale_tracking=_NAMES, sector_bytes=_BYTES
)
_RESOURCE = st.sampled_from(["VMs", "vCPUs", "memory", "volumes", "volume space", "snapshots", "ports"])
_LIMITS = _any(
    Limits,
    quotas=st.lists(_any(Quota, resource=_RESOURCE, limit=_BYTES, used=_BYTES, pool=st.none() | _NAME), max_size=3).map(
        tuple
    ),
    volume_unit_bytes=st.sampled_from([1, 1 << 30]),
    volume_max_bytes=st.none() | _BYTES,
    volumes_made=_NAMES,
)
_ACCESS = _any(AccessFacts, why_refused=_TEXT, roles=_NAMES, ends_at=_CLOCK, too_old=_NAMES, storage_unreached=_NAMES)
_SIZE = _any(VmSize, id=_NAME, name=_NAME, vcpus=_BYTES, memory_bytes=_BYTES, special=_NAMES)
_FIT = _any(
    FitFacts,
    hosts=st.none() | st.dictionaries(_NAME, _BYTES, max_size=2),
    hosts_free=st.none() | st.tuples(_BYTES, _BYTES),
    unfit_traits=_NAMES,
    taken=_MAP,
    ports_refused=_MAP,
)
_SOURCE = _any(
    SourceFacts,
    limits=_LIMITS,
    access=_ACCESS,
    address_pairs=_NAMES,
    floating_addresses=_NAMES,
    cloud=_NAME,
    vm=st.none() | _VM,
    same_name=_NAMES,
    disks=st.lists(_DISK_FACTS, max_size=3).map(tuple),
    passthrough=_NAMES,
    snapshots=_NAMES,
    running_job=st.none() | _TEXT,
    cpu_model=st.none() | _NAME,
    hostname=st.none() | _TEXT,
    guest_os=st.none() | _TEXT,
    hypervisor_version=_NAME,
    clock=_CLOCK,
    capabilities=st.none() | _CAN,
    network_mtus=st.dictionaries(_NAME, _BYTES, max_size=2),
)
_POOL = _any(
    PoolFacts,
    name=_NAME,
    free_bytes=st.none() | _BYTES,
    capacity_bytes=st.none() | _BYTES,
    provisionable_bytes=st.none() | _BYTES,
    sector_bytes=st.none() | _BYTES,
)
_NETWORK = _any(
    NetworkFacts,
    name=_NAME,
    mtu=st.none() | _BYTES,
    cidrs=_NAMES,
    fixed=st.none() | st.booleans(),
    filters=_NAMES,
)
_TARGET = _any(
    TargetFacts,
    limits=_LIMITS,
    access=_ACCESS,
    sizes=st.lists(_SIZE, max_size=2).map(tuple),
    cloud=_NAME,
    vm_names=_MAP,
    macs=_MAP,
    pools=st.lists(_POOL, max_size=3).map(tuple),
    networks=st.lists(_NETWORK, max_size=3).map(tuple),
    vcpus_max=st.none() | _BYTES,
    memory_free_bytes=st.none() | _BYTES,
    memory_total_bytes=st.none() | _BYTES,
    archs=_NAMES,
    machines=_NAMES,
    cpu_models=_NAMES,
    disk_buses=_NAMES,
    hypervisor_version=_NAME,
    clock=_CLOCK,
    capabilities=st.none() | _CAN,
    leftovers=_NAMES,
)
_PATH = _any(
    PathFacts,
    measured_at=_CLOCK,
    read_bytes_per_s=_RATE,
    write_bytes_per_s=_RATE,
    latency_s=_RATE,
    clock_skew_s=_RATE,
    dirty_bytes_per_s=_RATE,
    tools=_MAP,
    commands=_MAP,
    state_free_bytes=st.none() | _BYTES,
)
_PLAN = st.builds(
    VmPlan,
    plan=_NAME,
    vm=_NAME,
    source=_NAME,
    target=_NAME,
    mode=st.sampled_from(["incremental", "cold", "dual-attach"]),
    target_name=st.none() | _NAME,
    networks=_MAP,
    storage=_MAP,
    disk_format=st.sampled_from(["keep", "raw", "qcow2"]),
    keep_writes=st.booleans(),
    bandwidth_bytes_per_s=st.none() | st.floats(min_value=1e-300, max_value=1e300),
    ignore=_NAMES | st.just(tuple(rule.id for rule in RULES)),
    companions=st.lists(st.builds(Companion, vm=_NAME, storage=st.none() | _MAP), max_size=2).map(tuple),
    window=st.builds(Window, closes_at=st.none() | st.datetimes(timezones=st.just(UTC))),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    facts_=st.builds(
        PrecheckFacts.model_construct,
        plan=_PLAN,
        source=_SOURCE,
        target=_TARGET,
        path=_PATH,
        handover=_any(
            HandoverFacts,
            why_not=_TEXT,
            taken=_TEXT,
            apart=_NAMES,
            outside=_NAMES,
            unlike=_NAMES,
            openers=_NAMES,
            users=_NAMES,
        ),
        fit=_FIT,
        companions=st.none() | st.lists(_VM, max_size=2).map(tuple),
        stage=st.sampled_from(["plan", "start", "cutover"]),
    )
)
def test_the_run_never_raises_and_answers_every_rule_of_the_stage(facts_: PrecheckFacts) -> None:
    findings = run_rules(facts_)
    assert sorted(finding.rule for finding in findings) == sorted(
        rule.id for rule in RULES if facts_.stage in rule.stages
    )
    first_ok = next((index for index, finding in enumerate(findings) if finding.outcome == "ok"), len(findings))
    assert all(finding.outcome == "ok" for finding in findings[first_ok:])
    assert all(finding.action for finding in findings if finding.outcome in {"found", "accepted"})
    assert not any(finding.blocks and finding.rule in facts_.plan.ignore for finding in findings)
