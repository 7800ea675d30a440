"""The way of an import tried for real: a small volume is imported from a streaming server of this mover."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from activities.patience import until_ready
from activities.stream import Launch, Stop, http_at
from whimbrel.errors import NotReady, Unavailable
from whimbrel.model.endpoint import FileEndpoint
from whimbrel.model.vm import DiskSpec, TargetDisk, VolumeSpec
from whimbrel.ports.cloud import Cloud
from whimbrel.ports.imports import ImportPort
from whimbrel.stream.config import StreamConfig
from whimbrel.stream.http.token import url
from whimbrel.stream.place import Place

SIZE_BYTES = 64 << 20
DATA_BYTES = 1 << 20
PATIENCE_S = 90.0
"""A client that died is seen on its image for half a minute."""
OPEN_S = 60.0
"""An attempt's share: a connection that a firewall drops is given up by Linux after a good two minutes."""
POLL_S = 0.5
DISK = "probe"
T = TypeVar("T")


class ImportProbe:
    """Probes of one mover; each is taken down again, also one that an earlier attempt has left."""

    def __init__(self, state_dir: Path, socket_dir: Path, launch: Launch, stop: Stop) -> None:
        self._state_dir = state_dir
        self._socket_dir = socket_dir
        self._launch = launch
        self._stop = stop

    def run(self, cloud: Cloud, imports: ImportPort, pool: str, migration: str, *, patient: bool) -> None:
        """Import a volume of ``pool``, let the cloud open it, and remove it. Raises what fails first.

        With ``patient`` all is left for the next attempt while the cloud is still trying to open it (NotReady).
        """
        place = Place(self._state_dir, self._socket_dir, f"{migration}-probe", DISK)
        spec = VolumeSpec(
            name=f"whimbrel-probe-import-{migration}",
            pool=pool,
            size_bytes=SIZE_BYTES,
            format="raw",
            migration=migration,
        )
        address = self._serve(place, imports.gateway_address)
        made: list[TargetDisk] = []
        leave = False
        try:
            volume = _patiently(lambda: cloud.volumes.ensure_volume(spec))
            disk = TargetDisk(spec=DiskSpec(key=DISK, size_bytes=SIZE_BYTES, format="raw"), volume=volume)
            made.append(disk)
            _patiently(lambda: imports.begin(disk, address, migration=migration))
            _patiently(lambda: imports.try_out(disk, migration=migration), OPEN_S)
            deadline = time.monotonic() + PATIENCE_S
            if not imports.fill(
                disk, should_stop=lambda: time.monotonic() > deadline, on_progress=lambda _done, _total: None
            ):
                raise Unavailable(f"the import of {SIZE_BYTES >> 20} MiB is not done after {PATIENCE_S:.0f} s")
        except NotReady:
            leave = patient
            raise
        finally:
            if not leave:
                self._take_down(cloud, imports, spec, made, place)

    def _take_down(
        self, cloud: Cloud, imports: ImportPort, spec: VolumeSpec, made: list[TargetDisk], place: Place
    ) -> None:
        try:
            for disk in made:
                _patiently(lambda disk=disk: imports.give_up(disk, migration=spec.migration))  # type: ignore[misc]
            _patiently(lambda: cloud.volumes.ensure_absent(spec.name, spec.pool, migration=spec.migration))
        finally:
            self._stop(place)
            place.remove()

    def _serve(self, place: Place, address: str) -> str:
        """A server of a small file; the address of its disk, which is a secret."""
        http = http_at(place, address)
        source = place.directory / f"{DISK}.source"
        if not source.exists():
            with source.open("xb") as file:
                file.truncate(SIZE_BYTES)
                file.write(os.urandom(DATA_BYTES))
        place.write_config(
            StreamConfig(
                target_path=str(place.cache),
                map_stem=str(place.map_stem),
                size_bytes=SIZE_BYTES,
                source=FileEndpoint(path=str(source)),
                source_identity=place.migration,
                http=http,
                control_path=str(place.control),
            )
        )
        self._launch(place.config)
        return url(http.address, http.port, Path(http.token_path))


def _patiently(call: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    return until_ready(call, patience_s, POLL_S)
