"""Activities on volumes that their cloud imports from the streaming servers of this host; they run beside these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from temporalio import activity

from activities.bulk import BulkWatch, Notify
from activities.stream import Launch
from whimbrel.contracts.activity_io import Done
from whimbrel.contracts.stream_io import ImportInput
from whimbrel.errors import Unavailable, Unsupported, WhimbrelError
from whimbrel.ports.cloud import CloudRegistry
from whimbrel.ports.imports import ImportPort
from whimbrel.stream.config import read_config
from whimbrel.stream.control import ask
from whimbrel.stream.http.token import url
from whimbrel.stream.place import Place

LOOK_S = 1.0
RESTORE = "restore the cloud's entry in whimbrel.yaml as it was when the migration began"


class ImportActivities:
    """Beginning, carrying out and giving up imports. The address with its secret never leaves this host's files."""

    def __init__(
        self,
        clouds: CloudRegistry,
        state_dir: Path,
        socket_dir: Path,
        launch: Launch,
        *,
        notify: Notify | None = None,
        no_progress_s: float = 600.0,
    ) -> None:
        self._clouds = clouds
        self._state_dir = state_dir
        self._socket_dir = socket_dir
        self._launch = launch
        self._notify = notify
        self._no_progress_s = no_progress_s

    @activity.defn(name="import.begin", no_thread_cancel_exception=True)
    def begin(self, wanted: ImportInput) -> Done:
        """Let every volume read from its server."""
        imports = self._port(wanted.cloud)
        for disk in wanted.disks:
            place = self._place(wanted, disk.spec.key)
            http = read_config(place.config).http
            if http is None:
                raise Unsupported(
                    f"the streaming server of disk {disk.spec.key} does not serve HTTP",
                    action=f"{RESTORE}; or roll back: the source is intact",
                )
            address = url(http.address, http.port, Path(http.token_path))
            imports.begin(disk, address, migration=wanted.migration)
        return Done(note=f"{len(wanted.disks)} disks")

    @activity.defn(name="import.fill", no_thread_cancel_exception=True)
    def fill(self, wanted: ImportInput) -> Done:
        """Bring every byte to the volumes, one after the other; a server that died meanwhile is started again.

        That of any disk: the guest reads all of them, whichever is being filled.
        Raises Unavailable when it does not go on: it is called again, and goes on where it was.
        """
        imports = self._port(wanted.cloud)
        places = [self._place(wanted, disk.spec.key) for disk in wanted.disks]
        # one volume after the other, so each may have all of it
        servers = _Alive(places, self._launch, wanted.bandwidth_bytes_per_s)
        for disk in wanted.disks:
            with BulkWatch(disk.spec.key, no_progress_s=self._no_progress_s, notify=self._notify) as watch:
                watch.stage("hydrating")
                servers.look(now=True)

                def should_stop(watch: BulkWatch = watch) -> bool:
                    servers.look()
                    return watch.should_stop()

                def on_progress(done: int, total: int, watch: BulkWatch = watch) -> None:
                    watch.moved(done=done, total=total)

                if not imports.fill(disk, should_stop=should_stop, on_progress=on_progress):
                    watch.raise_stopped()
        return Done(note=f"{len(wanted.disks)} disks")

    @activity.defn(name="import.give_up", no_thread_cancel_exception=True)
    def give_up(self, wanted: ImportInput) -> Done:
        """End imports that are not complete; the storage asks their servers a last time.

        One that cannot be ended keeps no other from it; the first failure is raised when all were tried.
        """
        imports = self._port(wanted.cloud)
        failed: WhimbrelError | None = None
        for disk in wanted.disks:
            place = self._place(wanted, disk.spec.key)
            try:
                if place.config.exists():
                    self._launch(place.config)
                imports.give_up(disk, migration=wanted.migration)
            except WhimbrelError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return Done(note=f"{len(wanted.disks)} disks")

    def _port(self, cloud: str) -> ImportPort:
        found = self._clouds.get(cloud).imports
        if found is None:
            raise Unsupported(
                f"{cloud} does not import volumes any more",
                action=RESTORE,
            )
        return found

    def _place(self, wanted: ImportInput, disk: str) -> Place:
        return Place(self._state_dir, self._socket_dir, wanted.migration, disk)


class _Alive:
    """Starts servers again that do not answer, and tells all of them the limit; looks once a second."""

    def __init__(self, places: Sequence[Place], launch: Launch, bytes_per_s: float | None) -> None:
        self._places = places
        self._launch = launch
        self._bytes_per_s = bytes_per_s
        self._pids: dict[str, int] = {}
        self._looked_at = 0.0

    def look(self, *, now: bool = False) -> None:
        at = time.monotonic()
        if not now and at - self._looked_at < LOOK_S:
            return
        self._looked_at = at
        for place in self._places:
            try:
                status = ask(place.control, "status")
            except Unavailable:
                self._launch(place.config)
                self._pids.pop(place.disk, None)
                status = ask(place.control, "status")
            if self._pids.get(place.disk) != status["pid"]:
                # a server begins with the limit that its configuration was made with
                ask(place.control, "set-bandwidth", bytes_per_s=self._bytes_per_s)
                self._pids[place.disk] = status["pid"]
