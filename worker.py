"""The composition root: settings -> drivers -> activities -> one Worker per task queue; health, metrics, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.bulk import Notify
from activities.compute import ComputeActivities
from activities.copy import CopyActivities
from activities.drill import DrillActivities
from activities.handover import HandoverActivities
from activities.health import HealthActivities
from activities.hydration import NotifyStream
from activities.imports import ImportActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.point import PointActivities
from activities.precheck import PrecheckActivities
from activities.probe_import import ImportProbe
from activities.serving import ServingActivities
from activities.shadow import ShadowActivities
from activities.stream import Launch, Stop, StreamActivities
from activities.volume import VolumeActivities
from whimbrel.config import clouds as config_file
from whimbrel.config.clouds import WhimbrelConfig
from whimbrel.config.credentials import SecretRef, resolve
from whimbrel.contracts.heartbeat import COPY_MARK_SIGNAL, STREAM_MARK_SIGNAL, CopyMark, StreamMark
from whimbrel.contracts.names import CONTROL_QUEUE, data_queue
from whimbrel.dataplane import Governor, register_opener
from whimbrel.errors import InvalidPlan, WhimbrelError
from whimbrel.model.endpoint import LibvirtVolumeEndpoint, RbdEndpoint
from whimbrel.ports.block import BlockDevice
from whimbrel.ports.cloud import Cloud, CloudRegistry
from whimbrel.runtime import logs
from whimbrel.runtime.connect import connect
from whimbrel.runtime.exits import run_and_leave
from whimbrel.runtime.liveness import Liveness
from whimbrel.runtime.sandbox import runner
from whimbrel.runtime.search_attributes import ensure_search_attributes
from whimbrel.runtime.settings import WorkerSettings
from whimbrel.runtime.translation import ErrorTranslation
from whimbrel.stream.hostgovernor import HostGovernor
from whimbrel.stream.launch import launch
from whimbrel.stream.launch import stop as stop_process
from whimbrel.stream.place import Place, governor_file
from workflows.cold import ColdMigration
from workflows.drill import Drill
from workflows.dual_attach import DualAttachMigration
from workflows.incremental import IncrementalMigration
from workflows.streaming import StreamingMigration
from workflows.surveys import Inventory, Precheck

WORKFLOWS: Sequence[type[Any]] = (
    IncrementalMigration,
    ColdMigration,
    StreamingMigration,
    DualAttachMigration,
    Drill,
    Precheck,
    Inventory,
)
HEALTH_EVERY_S = 5.0
DEFAULT_SERVER_TLS_DIR = "/etc/pki/qemu"
STREAM_OPENERS = {"rbd": "drivers.ceph:open_rbd"}
"""What streaming servers load besides, when a source is of that kind."""
HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""The SDK's default would deliver a cursor up to a minute late."""


class ConfiguredClouds:
    """The clouds of ``whimbrel.yaml``, each made when first asked for."""

    def __init__(self, config: WhimbrelConfig) -> None:
        self._config = config
        self._made: dict[str, Cloud] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Cloud:
        """The cloud of this name. Raises InvalidPlan."""
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def names(self) -> list[str]:
        """All names in the file."""
        return sorted(self._config.clouds)

    def close(self) -> None:
        """Give all connections up."""
        with self._lock:
            for cloud in self._made.values():
                cloud.close()
            self._made.clear()

    def _make(self, name: str) -> Cloud:
        entry = self._config.cloud(name)
        if entry.kind == "memory":
            from drivers.memory import MemoryCloud

            return MemoryCloud(name)
        if entry.kind == "libvirt":
            from drivers.libvirt import LibvirtCloud

            return LibvirtCloud(
                name,
                uri=entry.uri,
                transport=entry.transport,
                nbd_host=entry.nbd_host,
                tls_dir=entry.tls_dir,
                scratch_dir=entry.scratch_dir,
                runtime_dir=entry.runtime_dir,
                console_dir=entry.console_dir,
                virt_type=entry.virt_type,
                isolated_networks=entry.isolated_networks,
                username=entry.user,
                credential=_secret(entry.credential),
                server_tls_dir=entry.server_tls_dir or DEFAULT_SERVER_TLS_DIR,
            )
        from drivers.ceph import RbdImages, RbdImports
        from drivers.openstack import MoverSettings, OpenStackCloud

        return OpenStackCloud(
            name,
            clouds_yaml_name=entry.clouds_yaml_name,
            admin_clouds_yaml_name=entry.admin_clouds_yaml_name,
            images=RbdImages(conf=entry.ceph.conf, user=entry.ceph.user) if entry.ceph is not None else None,
            pools=entry.ceph.pools if entry.ceph is not None else None,
            live=RbdImports(conf=entry.ceph.conf, user=entry.ceph.user) if entry.ceph is not None else None,
            gateway_address=entry.gateway_address,
            config_file=Path(entry.clouds_yaml) if entry.clouds_yaml is not None else None,
            region=entry.region,
            max_concurrent_calls=entry.max_concurrent_calls,
            calls_per_s=entry.calls_per_s,
            mover=MoverSettings(**entry.mover.model_dump()) if entry.mover is not None else None,
        )


def _secret(reference: SecretRef | None) -> Callable[[], str] | None:
    if reference is None:
        return None
    return lambda: resolve(reference).get_secret_value()


def control_activities(clouds: CloudRegistry) -> list[Callable[..., Any]]:
    """Everything on the queue ``control``."""
    compute, volume, point = ComputeActivities(clouds), VolumeActivities(clouds), PointActivities(clouds)
    handover = HandoverActivities(clouds)
    shadow = ShadowActivities(clouds)
    return [
        compute.inspect,
        compute.power,
        compute.start,
        compute.resume,
        compute.request_stop,
        compute.wait_off,
        compute.force_off,
        compute.set_autostart,
        compute.fence,
        compute.unfence,
        compute.announce,
        compute.ensure_vm,
        compute.ensure_absent,
        compute.release,
        compute.restore_source,
        volume.ensure,
        volume.remove,
        volume.open_writer,
        volume.open_disk_writer,
        volume.freeze_writer,
        volume.thaw_writer,
        volume.close_writer,
        point.open,
        point.open_at_rest,
        point.close,
        point.forget,
        handover.look,
        handover.release,
        handover.adopt,
        handover.define,
        handover.verify,
        handover.abandon,
        handover.reclaim,
        handover.forget_source,
        handover.remove_markers,
        shadow.open,
        shadow.merge,
        shadow.drop,
        ServingActivities(clouds).switch_disks,
        HealthActivities(clouds).check,
        InventoryActivities(clouds).list,
        LedgerActivities(clouds).read_back,
    ]


def stop_server(place: Place, *, keep_socket: bool = False) -> None:
    """End a streaming server and its supervisor."""
    stop_process(place.control, config_path=place.config, keep_socket=keep_socket)


def host_governor(state_dir: Path, limit: float | None) -> Governor:
    """What copies and comparisons draw from; with a limit, the streaming servers of this host draw from it too.

    Raises Unavailable.
    """
    return Governor() if limit is None else HostGovernor(governor_file(state_dir), limit)


def data_activities(
    clouds: CloudRegistry,
    state_dir: Path,
    governor: Governor,
    *,
    no_progress_s: float,
    socket_dir: Path | None = None,
    launch: Launch = launch,
    stop: Stop = stop_server,
    notify: Notify | None = None,
    notify_stream: NotifyStream | None = None,
) -> list[Callable[..., Any]]:
    """Everything on the queue ``data-<site>``."""
    copy = CopyActivities(state_dir, governor, no_progress_s=no_progress_s, notify=notify)
    sockets = socket_dir or state_dir / "sockets"
    stream = StreamActivities(
        clouds,
        state_dir,
        sockets,
        launch,
        stop,
        governor=governor,
        openers=STREAM_OPENERS,
        notify=notify,
        notify_stream=notify_stream,
        no_progress_s=no_progress_s,
    )
    imports = ImportActivities(
        clouds,
        state_dir,
        sockets,
        launch,
        notify=notify,
        no_progress_s=no_progress_s,
    )
    return [
        imports.begin,
        imports.fill,
        imports.give_up,
        copy.copy_disk,
        copy.compare_disk,
        copy.discard,
        PrecheckActivities(clouds, state_dir, ImportProbe(state_dir, sockets, launch, stop)).run,
        stream.serve,
        stream.hydrate,
        stream.figures,
        stream.prove,
        stream.drain,
        stream.let_go,
        stream.stop,
        DrillActivities(state_dir).record,
    ]


def open_volumes_of(clouds: CloudRegistry) -> None:
    """Let the data plane read volumes through the connections of these clouds (Xen hosts, transport stream)."""

    def opener(endpoint: LibvirtVolumeEndpoint) -> BlockDevice:
        from drivers.libvirt import volume_opener  # libvirt-python is an extra

        return volume_opener(clouds.get)(endpoint)

    register_opener("libvirt-volume", opener)


def open_images() -> None:
    """Let the data plane open images of Ceph pools; the binding is loaded when the first one is opened."""

    def opener(endpoint: RbdEndpoint) -> BlockDevice:
        from drivers.ceph import open_rbd

        return open_rbd(endpoint)

    register_opener("rbd", opener)


def marks(client: Client, loop: asyncio.AbstractEventLoop) -> Notify:
    """Sends a copy's marks to its workflow from any thread; a mark that is lost is no harm."""

    async def send(workflow_id: str, run_id: str, mark: CopyMark) -> None:
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(workflow_id, run_id=run_id).signal(COPY_MARK_SIGNAL, mark)

    def notify(workflow_id: str, run_id: str, mark: CopyMark) -> None:
        asyncio.run_coroutine_threadsafe(send(workflow_id, run_id, mark), loop)

    return notify


def stream_marks(client: Client, loop: asyncio.AbstractEventLoop) -> NotifyStream:
    """The same for what a stream tells."""

    async def send(workflow_id: str, run_id: str, mark: StreamMark) -> None:
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(workflow_id, run_id=run_id).signal(STREAM_MARK_SIGNAL, mark)

    def notify(workflow_id: str, run_id: str, mark: StreamMark) -> None:
        asyncio.run_coroutine_threadsafe(send(workflow_id, run_id, mark), loop)

    return notify


def build_workers(
    client: Client, clouds: CloudRegistry, settings: WorkerSettings, *, state_dir: Path, site: str, limit: float | None
) -> list[Worker]:
    """One Worker for each queue that the settings name. Raises InvalidPlan for unknown names."""
    open_volumes_of(clouds)
    open_images()
    wanted = {queue.strip() for queue in settings.queues.split(",")}
    if wanted - {"control", "data"} or not wanted:
        raise InvalidPlan(f"WHIMBREL_QUEUES is {settings.queues!r}", action="name control, data or both, with a comma")
    grace = timedelta(seconds=settings.graceful_shutdown_s)
    workers: list[Worker] = []
    if "control" in wanted:
        workers.append(
            Worker(
                client,
                task_queue=CONTROL_QUEUE,
                workflows=WORKFLOWS,
                activities=control_activities(clouds),
                activity_executor=ThreadPoolExecutor(settings.max_calls, "call"),
                max_concurrent_activities=settings.max_calls,
                workflow_runner=runner(),
                interceptors=[ErrorTranslation(), Liveness()],
                graceful_shutdown_timeout=grace,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            )
        )
    if "data" in wanted:
        governor = host_governor(state_dir, limit)
        loop = asyncio.get_running_loop()
        workers.append(
            Worker(
                client,
                task_queue=data_queue(site),
                activities=data_activities(
                    clouds,
                    state_dir,
                    governor,
                    no_progress_s=settings.no_progress_s,
                    socket_dir=settings.socket_dir,
                    launch=partial(launch, launcher=settings.stream_launcher),
                    notify=marks(client, loop),
                    notify_stream=stream_marks(client, loop),
                ),
                activity_executor=ThreadPoolExecutor(settings.max_copies, "copy"),
                max_concurrent_activities=settings.max_copies,
                interceptors=[ErrorTranslation(), Liveness()],
                graceful_shutdown_timeout=grace,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
            )
        )
    return workers


async def _tell_health(path: Path, ended: asyncio.Event) -> None:
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    while not ended.is_set():
        await asyncio.to_thread(path.touch)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), HEALTH_EVERY_S)
    await asyncio.to_thread(path.unlink, missing_ok=True)


async def serve(settings: WorkerSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    log = structlog.get_logger("whimbrel.worker")
    config = config_file.load(settings.config)
    runtime = None
    if settings.metrics_address:
        prometheus = PrometheusConfig(bind_address=settings.metrics_address, durations_as_seconds=True)
        runtime = Runtime(telemetry=TelemetryConfig(metrics=prometheus))
    client = await connect(runtime=runtime)
    await ensure_search_attributes(client)
    clouds = ConfiguredClouds(config)
    limit = settings.host_bandwidth or config.bandwidth_for(socket.gethostname())
    state_dir = settings.state_dir or config.state_path()
    site = settings.site or config.site
    workers = build_workers(client, clouds, settings, state_dir=state_dir, site=site, limit=limit)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    health = asyncio.create_task(_tell_health(settings.health_file, ended)) if settings.health_file else None
    log.info("worker.started", queues=[worker.task_queue for worker in workers], clouds=clouds.names(), site=site)
    running = [asyncio.create_task(worker.run()) for worker in workers]
    stop = asyncio.create_task(ended.wait())
    done, _ = await asyncio.wait([*running, stop], return_when=asyncio.FIRST_COMPLETED)
    ended.set()
    log.info("worker.stopping", grace_s=settings.graceful_shutdown_s)
    await asyncio.gather(*(worker.shutdown() for worker in workers), return_exceptions=True)
    results = await asyncio.gather(*running, return_exceptions=True)
    if health is not None:
        await health
    clouds.close()
    failed = [result for result in results if isinstance(result, BaseException)]
    for error in failed:
        log.error("worker.failed", error=str(error))
    log.info("worker.stopped")
    return 1 if failed or stop not in done else 0


async def _main() -> int:
    settings = WorkerSettings()
    logs.configure(level=settings.log_level, form=settings.log_format)
    try:
        return await serve(settings)
    except WhimbrelError as error:
        structlog.get_logger("whimbrel.worker").error("worker.refused", error=str(error), action=error.action)
        return 2


def main() -> None:
    """Entry point of ``whimbrel-worker``."""
    run_and_leave(_main)


if __name__ == "__main__":
    main()
