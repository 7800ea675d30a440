"""Plan files: what they become, and one exact line for each way to get them wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from whimbrel.config.clouds import load_text
from whimbrel.config.plan import load_plan, load_plan_text, together
from whimbrel.config.plan_file import PlanFile, Settings, VmEntry
from whimbrel.config.problem import InvalidFile
from whimbrel.model.plan import (
    AgentCheck,
    CommandCheck,
    ConfirmPolicy,
    ConsoleCheck,
    HealthPolicy,
    PlacementPolicy,
    RoundPolicy,
    StopPolicy,
    TcpCheck,
    VerifyPolicy,
    VmPlan,
    Window,
)

CONFIG = load_text(
    "version: 1\nclouds: {kvm-a: {kind: memory, site: north}, kvm-b: {kind: memory}}\n", "whimbrel.yaml", Path("/")
)
HEAD = """\
version: 1
name: wave-1
source: kvm-a
target: kvm-b
networks: {"*": lan}
storage: {"*": fast}
"""
SMALL = HEAD + "vms:\n  - name: web\n"

FULL = (
    HEAD
    + """\
defaults:
  mode: incremental
  disk_format: qcow2
  placement:
    sizes: {m1.small: g2.small, "*": g2.large}
    zone: north-1a
  rounds:
    outage_budget: 30s
    max_rounds: 20
    min_interval: 10s
    max_interval: 10m
    shrink_ratio: 0.8
    cutover: manual
    if_not_converging: cutover
  window: {opens_at: 2026-11-28T22:00:00Z, closes_at: 2026-11-29T04:00:00+01:00}
  stop: {graceful_timeout: 2m, then: hold}
  confirm: {after: 24h, then: auto_rollback}
  verify: {mode: sampled, sample_fraction: 0.1, when: before_boot, unchanged_sample: 0.01}
  health:
    timeout: 90s
    on_failure: rollback
    checks:
      - {kind: console, pattern: "login:"}
      - {kind: agent}
      - {kind: tcp, host: 192.0.2.7, port: 443}
      - {kind: command, argv: [/bin/true, "-x"]}
  keep_writes: true
  bandwidth: 400Mbit/s
  lanes: 4
  parallel_disks: 3
  ignore: [disk.serial]
vms:
  - name: web
  - name: db
    mode: cold
    target_name: db-new
    networks: {dmz: edge}
    storage: {"*": slow, ssd: nvme}
    placement: {sizes: {m1.tiny: g2.tiny}, group: apart}
    rounds: {outage_budget: 1h}
    bandwidth: 1MB/s
    ignore: []
"""
)


def test_the_smallest_plan_takes_every_default_of_the_model() -> None:
    loaded = load_plan_text(SMALL, "p.yaml")
    assert (loaded.name, loaded.source, loaded.target) == ("wave-1", "kvm-a", "kvm-b")
    assert loaded.vms == (
        VmPlan(plan="wave-1", vm="web", source="kvm-a", target="kvm-b", networks={"*": "lan"}, storage={"*": "fast"}),
    )


def test_every_key_arrives() -> None:
    web, db = load_plan_text(FULL, "p.yaml").vms
    assert web == VmPlan(
        plan="wave-1",
        vm="web",
        mode="incremental",
        source="kvm-a",
        target="kvm-b",
        networks={"*": "lan"},
        storage={"*": "fast"},
        disk_format="qcow2",
        placement=PlacementPolicy(sizes={"m1.small": "g2.small", "*": "g2.large"}, zone="north-1a"),
        rounds=RoundPolicy(
            outage_budget_s=30,
            max_rounds=20,
            min_interval_s=10,
            max_interval_s=600,
            shrink_ratio=0.8,
            cutover="manual",
            if_not_converging="cutover",
        ),
        window=Window(opens_at=datetime(2026, 11, 28, 22, tzinfo=UTC), closes_at=datetime(2026, 11, 29, 3, tzinfo=UTC)),
        stop=StopPolicy(graceful_timeout_s=120, then="hold"),
        confirm=ConfirmPolicy(after_s=86400, then="auto_rollback"),
        verify=VerifyPolicy(mode="sampled", sample_fraction=0.1, when="before_boot", unchanged_sample=0.01),
        health=HealthPolicy(
            checks=(
                ConsoleCheck(pattern="login:"),
                AgentCheck(),
                TcpCheck(host="192.0.2.7", port=443),
                CommandCheck(argv=("/bin/true", "-x")),
            ),
            timeout_s=90,
            on_failure="rollback",
        ),
        keep_writes=True,
        bandwidth_bytes_per_s=50e6,
        lanes=4,
        parallel_disks=3,
        ignore=("disk.serial",),
    )
    assert db.mode == "cold"
    assert db.target_name == "db-new"
    assert db.networks == {"*": "lan", "dmz": "edge"}
    assert db.storage == {"*": "slow", "ssd": "nvme"}
    assert db.rounds == web.rounds.model_copy(update={"outage_budget_s": 3600.0})
    sizes = {"m1.small": "g2.small", "m1.tiny": "g2.tiny", "*": "g2.large"}
    assert db.placement == PlacementPolicy(sizes=sizes, zone="north-1a", group="apart")
    assert [db.placement.size_for(name) for name in ("m1.tiny", "", "own")] == ["g2.tiny", "g2.large", "g2.large"]
    assert db.bandwidth_bytes_per_s == 1e6
    assert db.ignore == ()


def test_the_site_is_the_vms_own_else_the_source_clouds() -> None:
    assert load_plan_text(SMALL, "p.yaml", CONFIG).vms[0].site == "north"
    assert load_plan_text(SMALL + "    site: south\n", "p.yaml", CONFIG).vms[0].site == "south"


def test_every_field_of_the_model_can_be_written_in_yaml() -> None:
    head = {"plan", "vm", "source", "target", "companions"}  # companions are the plan's other VMs
    assert set(VmPlan.model_fields) - head == (set(VmEntry.model_fields) - {"name"})
    policies: dict[str, type[BaseModel]] = {
        "rounds": RoundPolicy, "window": Window, "stop": StopPolicy, "confirm": ConfirmPolicy,
        "verify": VerifyPolicy, "health": HealthPolicy,
    }  # fmt: skip
    for name, policy in policies.items():
        choices: tuple[Any, ...] = get_args(Settings.model_fields[name].annotation)
        section = choices[0]
        assert set(section.model_fields) == set(policy.model_fields), name


def test_every_key_is_described_in_the_schema() -> None:
    undescribed = [
        f"{model.__name__}.{name}"
        for model in (PlanFile, VmEntry, Settings)
        for name, info in model.model_fields.items()
        if not info.description
    ]
    assert undescribed == []


NO_NETWORKS = "no networks mapping: write source network: target network ('*' for all others), {} for no network cards"

BAD: list[tuple[str, str, list[str]]] = [
    ("unknown key", SMALL + "    modee: cold\n", ["p.yaml:9: vms[0].modee: unknown key; did you mean mode?"]),
    ("unknown at the top", SMALL + "storrage: {}\n", ["p.yaml:9: storrage: unknown key; did you mean storage?"]),
    (
        "model's own name of a key",
        SMALL + "    rounds: {outage_budget_s: 5}\n",
        ["p.yaml:9: vms[0].rounds.outage_budget_s: unknown key; did you mean outage_budget?"],
    ),
    (
        "unknown and far from all",
        SMALL + "    stop: {zzz: 1}\n",
        ["p.yaml:9: vms[0].stop.zzz: unknown key; known: graceful_timeout, then"],
    ),
    ("version missing", SMALL.replace("version: 1\n", ""), ["p.yaml:1: version: is missing"]),
    ("other version", SMALL.replace("version: 1", "version: 2"), ["p.yaml:1: version: should be 1, not '2'"]),
    ("no vms", HEAD + "vms: []\n", ["p.yaml:7: vms: is empty"]),
    ("vms as mapping", HEAD + "vms: {web: {}}\n", ["p.yaml:7: vms: should be a list, not a mapping"]),
    ("vm as text", HEAD + "vms: [web]\n", ["p.yaml:7: vms[0]: should be a mapping of keys to values, not 'web'"]),
    (
        "number as name",
        HEAD + "vms: [{name: 12}]\n",
        ["p.yaml:7: vms[0].name: should be text, not '12'; write it in quotes"],
    ),
    ("empty name", HEAD + "vms: [{name: }]\n", ["p.yaml:7: vms[0].name: should be text, not empty"]),
    (
        "plan name with a slash",
        SMALL.replace("wave-1", "wave/1"),
        ["p.yaml:2: name: should be letters, digits, dots, dashes and underscores only, not 'wave/1'"],
    ),
    (
        "mode",
        SMALL + "    mode: warm\n",
        ["p.yaml:9: vms[0].mode: should be 'incremental', 'cold', 'streaming' or 'dual-attach', not 'warm'"],
    ),
    (
        "bool",
        SMALL + "    keep_writes: maybe\n",
        ["p.yaml:9: vms[0].keep_writes: should be true or false, not 'maybe'"],
    ),
    (
        "duration without unit",
        SMALL + "    stop: {graceful_timeout: 60}\n",
        ["p.yaml:9: vms[0].stop.graceful_timeout: needs a unit: write 60s for seconds, 60m for minutes"],
    ),
    (
        "rate in b",
        SMALL + "    bandwidth: 10Mb/s\n",
        ["p.yaml:9: vms[0].bandwidth: is ambiguous: '10Mb/s'; write bits as Mbit/s, bytes as MB/s"],
    ),
    ("rate of nothing", SMALL + "    bandwidth: 0MB/s\n", ["p.yaml:9: vms[0].bandwidth: should be greater than 0"]),
    ("lanes", SMALL + "    lanes: 9\n", ["p.yaml:9: vms[0].lanes: should be less than or equal to 8, not '9'"]),
    (
        "time without zone",
        SMALL + "    window: {opens_at: 2026-11-28T22:00:00}\n",
        ["p.yaml:9: vms[0].window: times need a zone, for example 2026-11-28T22:00:00Z"],
    ),
    (
        "window upside down",
        SMALL + "    window: {opens_at: 2026-11-28T22:00:00Z, closes_at: 2026-11-28T21:00:00Z}\n",
        ["p.yaml:9: vms[0].window: the window closes before it opens"],
    ),
    (
        "confirm without a time, in defaults, told once for two VMs",
        HEAD + "defaults:\n  confirm: {then: auto_confirm}\nvms: [{name: a}, {name: b}]\n",
        ["p.yaml:8: defaults.confirm: auto_confirm needs after"],
    ),
    (
        "intervals that cross only once merged",
        HEAD + "defaults:\n  rounds: {max_interval: 10s}\nvms:\n  - name: a\n    rounds: {min_interval: 20s}\n",
        ["p.yaml:11: vms[0].rounds: min_interval is above max_interval"],
    ),
    (
        "health check of another kind's key",
        SMALL + "    health:\n      checks:\n        - {kind: tcp, host: h, prt: 1}\n",
        [
            "p.yaml:11: vms[0].health.checks[0].port: is missing",
            "p.yaml:11: vms[0].health.checks[0].prt: unknown key; did you mean port?",
        ],
    ),
    (
        "health check kind",
        SMALL + "    health: {checks: [{kind: ping}]}\n",
        ["p.yaml:9: vms[0].health.checks[0]: kind should be one of 'console', 'agent', 'tcp', 'command'"],
    ),
    (
        "duplicate VM",
        SMALL + "  - name: db\n  - name: web\n",
        ["p.yaml:10: vms[2].name: 'web' is taken by vms[0] on line 8"],
    ),
    (
        "duplicate by target name",
        SMALL + "  - name: db\n    target_name: web\n",
        ["p.yaml:10: vms[1].target_name: target name 'web' is taken by vms[0] on line 8"],
    ),
    (
        "same cloud and name",
        SMALL.replace("kvm-b", "kvm-a"),
        ["p.yaml:8: vms[0]: source and target are both 'kvm-a', so the VM needs a target_name other than its name"],
    ),
    (
        "unknown cloud",
        SMALL.replace("kvm-b", "kmv-b"),
        ["p.yaml:4: target: cloud 'kmv-b' is not in whimbrel.yaml; did you mean kvm-b?"],
    ),
    (
        "no mappings",
        "version: 1\nname: w\nsource: kvm-a\ntarget: kvm-b\nvms: [{name: a}, {name: b, storage: {x: y}}]\n",
        [
            f"p.yaml:1: {NO_NETWORKS}",
            "p.yaml:1: no storage mapping: write source pool: target pool ('*' for all others), {} for no disks",
        ],
    ),
    (
        "mapping to nothing",
        SMALL.replace('{"*": lan}', "{lab: }"),
        ["p.yaml:5: networks.lab: should be text, not empty"],
    ),
    ("key twice", SMALL + "    mode: cold\n    mode: cold\n", ["p.yaml:10: vms[0].mode: given twice, first on line 9"]),
    (
        "not YAML",
        "version: 1\nname: [\n",
        ["p.yaml:3: not valid YAML: expected the node content, but found '<stream end>'"],
    ),
    ("tag", SMALL + "    mode: !!python/name:os.system\n", ["p.yaml:9: vms[0].mode: cannot be read as a YAML value"]),
    ("empty file", "# nothing\n", ["p.yaml: is empty"]),
    ("a list", "- a\n", ["p.yaml:1: must be a mapping of keys to values at the top"]),
    (
        "all at once, in the file's order",
        SMALL + "    lanes: many\n  - nam: x\n    mode: [cold]\n",
        [
            "p.yaml:9: vms[0].lanes: should be a valid integer, unable to parse string as an integer, not 'many'",
            "p.yaml:10: vms[1].name: is missing",
            "p.yaml:10: vms[1].nam: unknown key; did you mean name?",
            "p.yaml:11: vms[1].mode: should be 'incremental', 'cold', 'streaming' or 'dual-attach', not a list",
        ],
    ),
]


@pytest.mark.parametrize(("text", "lines"), [(text, lines) for _, text, lines in BAD], ids=[name for name, _, _ in BAD])
def test_each_mistake_has_one_line(text: str, lines: list[str]) -> None:
    with pytest.raises(InvalidFile) as caught:
        load_plan_text(text, "p.yaml", CONFIG)
    assert sorted(str(problem) for problem in caught.value.problems) == sorted(lines)
    assert [p.line or 0 for p in caught.value.problems] == sorted(p.line or 0 for p in caught.value.problems)


def test_clouds_are_not_asked_for_when_none_are_given() -> None:
    assert load_plan_text(SMALL.replace("kvm-b", "anything"), "p.yaml").target == "anything"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="No such file"):
        load_plan(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(InvalidFile, match="is not UTF-8 text"):
        load_plan(tmp_path / "latin.yaml")


def test_merge_keys_and_anchors_work_and_are_no_repeats() -> None:
    text = HEAD + "vms:\n  - &web {name: web, lanes: 3, mode: cold}\n  - {<<: *web, name: db, lanes: 4}\n"
    web, db = load_plan_text(text, "p.yaml").vms
    assert (web.lanes, db.lanes, db.mode) == (3, 4, "cold")


def test_a_bomb_of_aliases_is_refused_quickly() -> None:
    layers = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(InvalidFile, match="too deep or too large"):
        load_plan_text("version: 1\nx:\n  l0: &l0 [a]\n" + layers, "p.yaml")


def test_a_document_that_holds_itself_is_refused() -> None:
    with pytest.raises(InvalidFile, match="too deep or too large"):
        load_plan_text("version: 1\nvms: &a [*a]\n", "p.yaml")


def test_what_is_started_together_asks_for_room_together() -> None:
    loaded = load_plan_text(FULL, "p.yaml")
    web, db = loaded.select([])
    assert [one.vm for one in web.companions] == ["db"]
    assert [one.vm for one in db.companions] == ["web"]
    assert loaded.select(["db"])[0].companions == ()
    assert web.companions[0].target_name == db.target_name
    assert (web.companions[0].storage or web.storage) == db.storage, "a map that is the same is not repeated"
    assert web.companions[0].placement == db.placement
    alike = together([web, web.model_copy(update={"vm": "app"})])
    assert (alike[0].companions[0].storage, alike[0].companions[0].placement) == (None, None)


def test_selecting_vms_keeps_the_files_order() -> None:
    loaded = load_plan_text(FULL, "p.yaml")
    assert [plan.vm for plan in loaded.select(["db", "web"])] == ["web", "db"]
    assert [plan.vm for plan in loaded.select([])] == ["web", "db"]
    with pytest.raises(InvalidFile, match=r"has no VM 'wbe'; did you mean web\?"):
        loaded.select(["wbe"])
