"""Cases of the rules about streaming and drills."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.precheck.case import Case, case_found, case_ok, case_unknown
from tests.precheck.healthy import MIB, NOW, facts
from whimbrel.model.plan import DrillPolicy, StreamPolicy

STREAMS: dict[str, Any] = {
    "plan__mode": "streaming",
    "source__capabilities__shadows": True,
    "target__capabilities__serve_disks": True,
    "path__target_file_seen": True,
    "path__traces": 2,
}
DRILL: dict[str, Any] = {**STREAMS, "plan__mode": "incremental", "drill": True}
DAY_S = 86400.0


def _streams(**changes: Any) -> Any:
    return facts(**{**STREAMS, **changes})


def _imports(**changes: Any) -> Any:
    return _streams(target__capabilities__imports=True, path__target_file_seen=None, **changes)


STREAMING: tuple[Case, ...] = (
    case_ok("stream.capable", _imports(), "storage imports"),
    case_found("stream.capable", _imports(plan__stream=StreamPolicy(protect="mirror")), "protect: mirror", "none"),
    case_found("stream.capable", _imports(plan__stream=StreamPolicy(precopy=True)), "whole", "mode incremental"),
    case_ok("stream.capable", _imports(drill=True), "copies all data"),
    case_found("stream.capable", _imports(drill=True, plan__drill=DrillPolicy(data="stream")), "drills", "copied"),
    case_ok("stream.import", _imports(drill=True, plan__drill=DrillPolicy(data="stream")), "nothing is imported"),
    case_found(
        "stream.capable",
        _streams(target__capabilities__serve_disks=False, target__capabilities__no_streaming="no ceph section"),
        "no ceph section",
        "small last delta",
    ),
    case_ok("stream.import", _streams(), "nothing is imported"),
    case_ok("stream.import", facts(), "nothing is imported"),
    case_ok("stream.import", _imports(path__import_tried=True), "was imported"),
    case_found(
        "stream.import",
        _imports(path__import_blockers=("volume type hdd: no Ceph pool",)),
        "volume type hdd",
        "small last delta",
    ),
    case_found(
        "stream.import",
        _imports(path__import_tried=False, path__import_why_not="the snapshot failed"),
        "the snapshot failed",
        "gateway_address",
        "mode incremental",
    ),
    case_unknown("stream.import", _imports(), "not tried"),
    case_ok("stream.target-file", _imports(), "storage imports"),
    case_ok("stream.protect", _imports(), "brought back"),
    case_ok("stream.capable", _streams(), "protect: none"),
    case_ok("stream.capable", facts(**DRILL), "serves disks"),
    case_found("stream.capable", _streams(target__capabilities__serve_disks=False), "kvm-b", "mode incremental"),
    case_ok("stream.capable", facts(**{**DRILL, "target__capabilities__serve_disks": False}), "copies all data"),
    case_ok("stream.capable", facts(**{**DRILL, "plan__drill": DrillPolicy(data="copy")}), "copies all data"),
    case_found(
        "stream.capable",
        facts(**{**DRILL, "target__capabilities__serve_disks": False, "plan__drill": DrillPolicy(data="stream")}),
        "kvm-b",
        "drill.data: auto",
    ),
    case_ok("stream.bandwidth", facts(**{**DRILL, "plan__drill": DrillPolicy(data="copy")}), "then the drill boots"),
    case_ok("stream.latency", facts(**{**DRILL, "plan__drill": DrillPolicy(data="copy")}), "nothing is streamed"),
    case_found(
        "stream.capable",
        _streams(source__capabilities__shadows=False, plan__stream=StreamPolicy(protect="mirror")),
        "kvm-a",
        "protect: none",
    ),
    case_ok("stream.capable", facts(**{**DRILL, "source__capabilities__shadows": False}), "protect: none"),
    case_unknown("stream.capable", _streams(target__capabilities=None)),
    case_ok("stream.target-file", _streams(), "probe volume"),
    case_found("stream.target-file", _streams(path__target_file_seen=False), "cannot open", "host"),
    case_unknown("stream.target-file", _streams(path__target_file_seen=None), "not tried"),
    case_ok("stream.latency", _streams(), "2.0 ms"),
    case_found("stream.latency", _streams(path__latency_s=0.05), "50.0 ms", "precopy"),
    case_unknown("stream.latency", _streams(path__latency_s=None)),
    case_ok("stream.bandwidth", _streams(), "take about"),
    case_found(
        "stream.bandwidth",
        _streams(path__read_bytes_per_s=1.0 * MIB, path__write_bytes_per_s=1.0 * MIB),
        "depends on the source",
        "precopy",
    ),
    case_unknown("stream.bandwidth", _streams(path__read_bytes_per_s=None, path__write_bytes_per_s=None)),
    case_found("stream.protect", _streams(), "lost by a rollback", "mirror"),
    case_ok("stream.protect", _streams(plan__stream=StreamPolicy(protect="mirror")), "acknowledged"),
    case_ok("stream.protect", _streams(plan__stream=StreamPolicy(protect="journal")), "behind"),
    case_ok("stream.protect", facts(**DRILL)),
    case_ok("stream.history", _streams(), "2 recorded"),
    case_found("stream.history", _streams(path__traces=0), "whimbrel drill"),
    case_ok("stream.history", _streams(path__traces=0, plan__stream=StreamPolicy(prefetch=False)), "not planned"),
    case_found("drill.required", facts(plan__require_drill_s=14 * DAY_S), "no passed drill", "whimbrel drill"),
    case_found(
        "drill.required",
        facts(plan__require_drill_s=14 * DAY_S, path__drilled_at=NOW - timedelta(days=15)),
        "15 d",
    ),
    case_ok(
        "drill.required", facts(plan__require_drill_s=14 * DAY_S, path__drilled_at=NOW - timedelta(days=13)), "passed"
    ),
    case_ok("drill.required", facts(**{**DRILL, "plan__require_drill_s": DAY_S}), "requires no drill"),
    case_found("drill.isolated", facts(**DRILL), "office-b", "drill.networks"),
    case_ok("drill.isolated", facts(**{**DRILL, "plan__networks": {"*": "lab"}}), "isolated"),
    case_ok("forecast.converges", _streams(), "no rounds"),
    case_ok("forecast.outage", _streams(path__dirty_bytes_per_s=300.0 * MIB), "budget"),
    case_ok("disk.target-format", _streams(target__capabilities__disk_formats=("raw",)), "vda as raw"),
)
