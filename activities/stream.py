"""Activities that start, watch, prove and end streaming servers; they run on the host of the target VM."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from temporalio import activity

from activities.bulk import BulkWatch, Notify
from activities.copy import manifest_path
from activities.hydration import Hydration, NotifyStream, figures_of
from whimbrel.contracts.activity_io import CompareDiskResult, Done
from whimbrel.contracts.stream_io import (
    DiskStream,
    HydrateInput,
    HydrateResult,
    ProveInput,
    ServedDisk,
    ServeInput,
    ServeResult,
    StopStreamInput,
    StreamInput,
)
from whimbrel.dataplane import Governor, Priority, disown, open_device
from whimbrel.errors import Unavailable, Unsupported
from whimbrel.model.endpoint import Endpoint, FileEndpoint, MemoryEndpoint, NbdEndpoint, RbdEndpoint
from whimbrel.model.extent import Extent
from whimbrel.model.progress import VerifyRecord
from whimbrel.ports.cloud import CloudRegistry
from whimbrel.stream.config import HttpListen, ListenAt, StreamConfig, read_config
from whimbrel.stream.control import ask
from whimbrel.stream.http.token import ensure_token
from whimbrel.stream.place import Place, governor_file, traces_of
from whimbrel.stream.proof import prove
from whimbrel.stream.protect.config import ProtectConfig
from whimbrel.stream.seed import seed_map, seeded

KEPT_TRACES = 5
DRAIN_S, DRAIN_TRIES = 5.0, 6
PREDICTED = ("sequential", "locality", "correlation", "bootset")
"""What the plan's ``prefetch`` turns on and off."""
SOCKET_MODE = 0o666
"""Where QEMU's user cannot be given access alone: then the directory of the sockets, which cannot be listed, is all."""

Launch = Callable[[Path], None]
"""Starts the server of a configuration file, or adopts the one that runs; returns when it answers."""


class Stop(Protocol):
    """Ends a server in order, and whoever would start it again; one that is not there is fine."""

    def __call__(self, place: Place, *, keep_socket: bool = False) -> None:
        """With ``keep_socket`` readers over HTTP wait for the next server; otherwise they are refused."""
        ...


class StreamActivities:
    """Streaming servers of this host, found by migration and disk."""

    def __init__(
        self,
        clouds: CloudRegistry,
        state_dir: Path,
        socket_dir: Path,
        launch: Launch,
        stop: Stop,
        *,
        governor: Governor,
        openers: Mapping[str, str] | None = None,
        notify: Notify | None = None,
        notify_stream: NotifyStream | None = None,
        no_progress_s: float = 600.0,
    ) -> None:
        self._clouds = clouds
        self._state_dir = state_dir
        self._socket_dir = socket_dir
        self._launch = launch
        self._stop = stop
        self._governor = governor
        self._openers = dict(openers or {})
        self._notify = notify
        self._notify_stream = notify_stream
        self._no_progress_s = no_progress_s

    def _place(self, migration: str, disk: str) -> Place:
        return Place(self._state_dir, self._socket_dir, migration, disk)

    @activity.defn(name="stream.serve", no_thread_cancel_exception=True)
    def serve(self, wanted: ServeInput) -> ServeResult:
        """Have a server run for every disk; those that run already are told where the source is now."""
        served = []
        for disk in wanted.disks:
            place = self._place(wanted.migration, disk.disk.spec.key)
            config = self._config(wanted, disk, place)
            self._serve(place, config, disk)
            if config.http is None:
                endpoint = NbdEndpoint(unix_path=str(place.nbd), export=config.export, writable=True)
                served.append(ServedDisk(key=disk.disk.spec.key, endpoint=endpoint))
        return ServeResult(disks=tuple(served), imports=self._clouds.get(wanted.cloud).imports is not None)

    def _config(self, wanted: ServeInput, disk: DiskStream, place: Place) -> StreamConfig:
        key, policy = disk.disk.spec.key, wanted.policy
        source = disk.source.endpoint
        if not self._reads(source):
            raise Unsupported(
                f"disk {key} can only be read through {source.kind}, which a stream cannot use",
                action="use mode incremental or cold for this VM",
            )
        shadow = disk.shadow
        if shadow is not None and not isinstance(shadow, (NbdEndpoint, FileEndpoint, MemoryEndpoint)):
            raise Unsupported(
                f"the shadow of disk {key} cannot be reached through {shadow.kind}",
                action="set stream.protect: none, or use mode incremental with keep_writes",
            )
        cloud = self._clouds.get(wanted.cloud)
        if cloud.imports is None:
            path = cloud.serving.local_path(disk.disk.volume)
            client = cloud.serving.client()
            reached: dict[str, object] = {
                "listen": (ListenAt(unix_path=str(place.nbd), unix_mode=SOCKET_MODE, unix_client=client),)
            }
        else:
            path = str(place.cache)
            reached = {"http": http_at(place, cloud.imports.gateway_address)}
        limit = self._governor.host_limit_bytes_per_s
        traces: tuple[str, ...] = ()
        if policy.prefetch:
            kept = traces_of(self._state_dir, wanted.vm, key)
            traces = tuple(str(trace) for trace in sorted(kept.glob("*.trace"))) if kept.is_dir() else ()
        return StreamConfig.model_validate(
            {
                "target_path": path,
                "map_stem": str(place.map_stem),
                "size_bytes": disk.source.size_bytes,
                "source": source,
                "openers": {kind: where for kind, where in self._openers.items() if kind == source.kind},
                "source_identity": f"{wanted.migration}/{key}/{wanted.epoch}",
                **reached,
                "control_path": str(place.control),
                "bandwidth_bytes_per_s": wanted.bandwidth_bytes_per_s,
                # An error would be the guest's, and may cost what it wrote: storage that imports is made to wait.
                "source_fail_after_s": policy.source_fail_after_s if cloud.imports is None else None,
                "protect": ProtectConfig(
                    mode=policy.protect if shadow is not None else "none",
                    shadow=shadow,
                    journal_path=str(place.journal),
                    max_lag_bytes=policy.max_lag_bytes,
                    max_lag_s=policy.max_lag_s,
                ),
                "prefetch": {"history": traces, **dict.fromkeys(PREDICTED, policy.prefetch)},
                "trace_path": str(place.trace) if wanted.record else None,
                "governor_path": str(governor_file(self._state_dir)) if limit else None,
                "host_limit_bytes_per_s": limit,
            }
        )

    def _reads(self, source: Endpoint) -> bool:
        """Whether a server can open it: by itself, or by what a driver lends it."""
        return isinstance(source, (NbdEndpoint, FileEndpoint, MemoryEndpoint)) or (
            isinstance(source, RbdEndpoint) and source.kind in self._openers
        )

    def _serve(self, place: Place, config: StreamConfig, disk: DiskStream) -> None:
        before = read_config(place.config) if place.config.exists() else None
        if before is not None and before != config:
            self._move(place, before, config)
        place.write_config(config)
        if disk.precopied and config.http is None and not seeded(config):
            missing = list(_changed(disk))
            # Before anything is fetched: should the take-over be taken back, a round must not trust these places.
            manifest = manifest_path(self._state_dir, place.migration, disk.disk.spec.key)
            disown(manifest, disk.source.size_bytes, missing)
            seed_map(config, missing)
        self._launch(place.config)

    def _move(self, place: Place, before: StreamConfig, config: StreamConfig) -> None:
        """Tell a running server where its source and its shadow are now; anything else needs a new start."""
        shadow = config.protect.shadow
        protect = before.protect.model_copy(update={"shadow": shadow})
        moved = before.model_copy(update={"source": config.source, "prefetch": config.prefetch, "protect": protect})
        if moved != config:
            # Storage that imports must find nobody gone: it would make the refusal an error of its guest.
            self._stop(place, keep_socket=True)
            return
        try:
            if config.source != before.source:
                ask(place.control, "source", endpoint=config.source.model_dump(mode="json"))
            if shadow is not None and shadow != before.protect.shadow:
                ask(place.control, "shadow", endpoint=shadow.model_dump(mode="json"))
        except Unavailable:
            return  # it starts anew, from the new configuration

    @activity.defn(name="stream.hydrate", no_thread_cancel_exception=True)
    def hydrate(self, job: HydrateInput) -> HydrateResult:
        """Watch until every byte has arrived; servers that died are started again.

        Raises Unavailable when source or shadow stay away (both ends are to be opened anew), QuotaExceeded when the
        target is full.
        """
        places = [self._place(job.migration, disk) for disk in job.disks]
        cloud = self._clouds.get(job.cloud) if job.cloud else None
        watching = Hydration(
            job,
            places,
            self._launch,
            serving=cloud.serving if cloud else None,
            compute=cloud.compute if cloud else None,
            notify=self._notify,
            notify_stream=self._notify_stream,
        )
        try:
            return HydrateResult(figures=watching.run())
        finally:
            watching.close()

    @activity.defn(name="stream.figures", no_thread_cancel_exception=True)
    def figures(self, wanted: StreamInput) -> HydrateResult:
        """What the servers have done so far."""
        places = [self._place(wanted.migration, disk) for disk in wanted.disks]
        return HydrateResult(figures=figures_of([ask(place.control, "status") for place in places]))

    @activity.defn(name="stream.prove", no_thread_cancel_exception=True)
    def prove(self, job: ProveInput) -> CompareDiskResult:
        """Compare every chunk that the guest never wrote with the source."""
        config = read_config(self._place(job.migration, job.disk).config)
        with BulkWatch(job.disk, no_progress_s=self._no_progress_s) as watch:
            watch.stage("comparing")
            source = open_device(job.source.endpoint)
            share = self._governor.share(Priority.HYDRATION, job.limit_bytes_per_s)
            try:
                proof = prove(
                    config,
                    source,
                    should_stop=watch.should_stop,
                    on_progress=lambda done, total: watch.moved(done=done, total=total),
                    pace=lambda count: share.take(count, watch.should_stop),
                )
            finally:
                source.close()
            if proof is None:
                watch.raise_stopped()
                raise AssertionError("unreachable")
        left_out = []
        if proof.written_bytes:
            left_out.append(f"{proof.written_bytes} bytes that the guest wrote")
        if proof.unsure_bytes:
            left_out.append(f"{proof.unsure_bytes} bytes that a crash of the host leaves open")
        record = VerifyRecord(
            disk=job.disk,
            mode="full",
            compared_bytes=proof.compared_bytes,
            skipped_zero_bytes=proof.zero_bytes,
            mismatches=proof.mismatches,
            first_mismatches=proof.first_mismatches,
            digest=proof.digest,
            sample=f"without {' and '.join(left_out)}" if left_out else "",
        )
        return CompareDiskResult(record=record)

    @activity.defn(name="stream.drain", no_thread_cancel_exception=True)
    def drain(self, wanted: StreamInput) -> Done:
        """Return when all acknowledged writes are in the shadows, durably. Raises Unavailable while one is away."""
        for disk in wanted.disks:
            place = self._place(wanted.migration, disk)
            if not place.config.exists():
                continue
            self._launch(place.config)
            if not _drained(place):
                raise Unavailable(
                    f"the last writes of disk {disk} are not at the source yet",
                    action="see that the source's host answers; it is tried again, and nothing is lost meanwhile",
                    disk=disk,
                )
        return Done()

    @activity.defn(name="stream.let_go", no_thread_cancel_exception=True)
    def let_go(self, wanted: StreamInput) -> Done:
        """Have the guest's writes need no shadow any more, for good; those that wait for one are acknowledged.

        Raises Unavailable while a crash of the host is made good from a shadow.
        """
        places = [self._place(wanted.migration, disk) for disk in wanted.disks]
        places = [place for place in places if place.config.exists()]
        for place in places:
            self._launch(place.config)
            # All first: one that has let go cannot be given its shadow again.
            if (ask(place.control, "status").get("protect") or {}).get("needs_shadow"):
                raise _not_yet(place)
        for place in places:
            if not ask(place.control, "let-go")["let_go"]:
                raise _not_yet(place)
            config = read_config(place.config)
            place.write_config(config.model_copy(update={"protect": ProtectConfig()}))
        return Done()

    @activity.defn(name="stream.stop", no_thread_cancel_exception=True)
    def stop(self, wanted: StopStreamInput) -> Done:
        """End the servers in order and remove their files; those that never ran are fine."""
        for disk in wanted.disks:
            place = self._place(wanted.migration, disk)
            self._stop(place)
            if wanted.keep_trace_of is not None:
                self._keep_trace(place, wanted.keep_trace_of, disk)
            place.remove()
        return Done()

    def _keep_trace(self, place: Place, vm: str, disk: str) -> None:
        segments = sorted(place.directory.glob(f"{disk}.trace*")) if place.directory.is_dir() else []
        if not segments:
            return
        kept = traces_of(self._state_dir, vm, disk)
        kept.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        for number, segment in enumerate(segments):
            segment.replace(kept / f"{stamp}-{place.migration}-{number}.trace")
        for old in sorted(kept.glob("*.trace"))[:-KEPT_TRACES]:
            old.unlink(missing_ok=True)


def _not_yet(place: Place) -> Unavailable:
    return Unavailable(
        f"disk {place.disk} gets acknowledged writes back from the source, which a crash of its host has taken from it",
        action="see that the source's host answers; it is tried again, and nothing is lost meanwhile",
        disk=place.disk,
    )


def _drained(place: Place) -> bool:
    """Whether the shadow gets everything soon; one that is away is not waited for."""
    for _ in range(DRAIN_TRIES):
        if ask(place.control, "drain", timeout_s=DRAIN_S)["drained"]:
            return True
        protect = ask(place.control, "status").get("protect") or {}
        if protect.get("away_s") is not None:
            return False
    return False


def http_at(place: Place, address: str) -> HttpListen:
    """Where the storage reads: the same place for as long as the stream exists, for it stands in the image's header."""
    before = read_config(place.config).http if place.config.exists() else None
    if before is not None:
        return before
    place.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_token(place.token)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise Unavailable(
                f"this mover cannot listen on gateway_address {address}: {error.strerror}",
                action="give gateway_address an address of this mover that the cloud's hosts reach",
            ) from error
        port = int(probe.getsockname()[1])
    return HttpListen(address=address, port=port, token_path=str(place.token), bulk_from=("self",))


def _changed(disk: DiskStream) -> Iterator[Extent]:
    """What the copy lacks; asked only when a map is made."""
    if not disk.source.tracked:
        yield Extent(0, disk.source.size_bytes)
        return
    device = open_device(disk.source.endpoint)
    try:
        yield from device.changed()
    finally:
        device.close()
