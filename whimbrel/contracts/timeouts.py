"""One table of timeouts and retries: every activity has a row, and a test holds it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio.common import RetryPolicy


@dataclass(frozen=True)
class Timing:
    """Limits of one class of activities; None means no limit of that kind."""

    start_to_close: timedelta
    retry: RetryPolicy
    heartbeat: timedelta | None = None
    schedule_to_close: timedelta | None = None
    own_beats: bool = False
    """The activity tells its progress by heartbeats; for all others the worker beats (``runtime.liveness``)."""


def _seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


CALL_HEARTBEAT = _seconds(20)
"""A worker that died in a call is noticed after this long, and not at the end of the call's limit."""
CLOUD_READ = Timing(
    _seconds(60), RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(30)), heartbeat=CALL_HEARTBEAT
)
"""Without an end: a cloud that is down for an hour is waited for, visibly."""
CLOUD_WRITE = Timing(
    _seconds(120), RetryPolicy(initial_interval=_seconds(2), maximum_interval=_seconds(60)), heartbeat=CALL_HEARTBEAT
)
GATHER = Timing(
    _seconds(600), RetryPolicy(initial_interval=_seconds(2), maximum_interval=_seconds(30)), heartbeat=CALL_HEARTBEAT
)
"""Long because the data path may go through servers that have to be made first."""
BULK = Timing(
    timedelta(hours=24),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(60), maximum_attempts=5),
    heartbeat=_seconds(20),
    own_beats=True,
)
"""Start-to-close is only a backstop: lack of progress fails the attempt long before.

Attempts end after about a quarter of a minute of failures because what they read may be gone for good (a hypervisor
that died takes the point in time with it): the workflow then opens both ends again and goes on, as long as it takes.
"""
HYDRATE = Timing(
    timedelta(hours=24),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(5), maximum_attempts=2),
    heartbeat=_seconds(20),
    own_beats=True,
)
"""It only watches: servers go on without it. After two attempts the operator is told, and both ends are opened."""
CUTOVER = Timing(
    _seconds(120),
    RetryPolicy(initial_interval=_seconds(0.5), maximum_interval=_seconds(10)),
    heartbeat=CALL_HEARTBEAT,
    schedule_to_close=timedelta(minutes=10),
)
"""While the guest is down: quick retries, and an end, after which the source is started again."""
DRAIN = Timing(
    _seconds(120),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(5), maximum_attempts=2),
    heartbeat=CALL_HEARTBEAT,
)
"""Before a rollback: what does not get there soon may need its shadow opened again."""
WAIT_OFF = Timing(_seconds(20), RetryPolicy(initial_interval=_seconds(1), backoff_coefficient=1.0))
HEALTH = Timing(
    timedelta(minutes=2),
    RetryPolicy(initial_interval=_seconds(1), backoff_coefficient=1.0),
    heartbeat=CALL_HEARTBEAT,
)
"""Schedule-to-close is the plan's own."""
SWITCH = Timing(
    timedelta(minutes=10),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(30)),
    heartbeat=CALL_HEARTBEAT,
)
"""The guest runs all the while, so there is time; an end would leave it half switched."""
COMPENSATION = Timing(
    timedelta(minutes=10),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=timedelta(minutes=2)),
    heartbeat=CALL_HEARTBEAT,
    schedule_to_close=timedelta(hours=24),
)

FREEZE = Timing(
    _seconds(90),
    RetryPolicy(initial_interval=_seconds(1), maximum_interval=_seconds(5), maximum_attempts=4),
    heartbeat=CALL_HEARTBEAT,
    schedule_to_close=timedelta(minutes=3),
)
"""For a drill only: what does not succeed soon is given up, so that the migration's rounds go on."""

TABLE: dict[str, Timing] = {
    "inventory.list": CLOUD_READ,
    "precheck.run": GATHER,
    "compute.inspect": CLOUD_READ,
    "compute.power": CLOUD_READ,
    "compute.start": CUTOVER,
    "compute.resume": CUTOVER,
    "compute.request_stop": CUTOVER,
    "compute.wait_off": WAIT_OFF,
    "compute.force_off": CUTOVER,
    "compute.set_autostart": CUTOVER,
    "compute.fence": CUTOVER,
    "compute.unfence": CLOUD_WRITE,
    "compute.announce": CUTOVER,
    "compute.ensure_vm": CUTOVER,
    "compute.ensure_absent": COMPENSATION,
    "compute.release": CLOUD_WRITE,
    "compute.restore_source": COMPENSATION,
    "compute.switch_disks": SWITCH,
    "volume.ensure": CLOUD_WRITE,
    "volume.remove": COMPENSATION,
    "volume.open_writer": CLOUD_WRITE,
    "volume.open_disk_writer": COMPENSATION,
    "volume.close_writer": CLOUD_WRITE,
    "volume.freeze_writer": FREEZE,
    "volume.thaw_writer": FREEZE,
    "point.open": CLOUD_WRITE,
    "point.open_at_rest": CUTOVER,
    "point.close": CLOUD_WRITE,
    "point.forget": CLOUD_WRITE,
    "copy.disk": BULK,
    "compare.disk": BULK,
    "manifest.discard": CLOUD_WRITE,
    "handover.look": GATHER,
    "handover.release": CUTOVER,
    "handover.adopt": CUTOVER,
    "handover.define": CUTOVER,
    "handover.verify": CLOUD_READ,
    "handover.abandon": COMPENSATION,
    "handover.reclaim": COMPENSATION,
    "handover.forget_source": CLOUD_WRITE,
    "handover.remove_markers": COMPENSATION,
    "shadow.open": CLOUD_WRITE,
    "shadow.merge": COMPENSATION,
    "shadow.drop": CLOUD_WRITE,
    "stream.serve": CLOUD_WRITE,
    "stream.hydrate": HYDRATE,
    "stream.figures": CLOUD_READ,
    "stream.prove": BULK,
    "stream.drain": COMPENSATION,
    "stream.let_go": CLOUD_WRITE,
    "stream.stop": SWITCH,
    "import.begin": CLOUD_WRITE,
    "import.fill": HYDRATE,
    "import.give_up": COMPENSATION,
    "drill.record": CLOUD_WRITE,
    "health.check": HEALTH,
    "ledger.read_back": GATHER,
}
