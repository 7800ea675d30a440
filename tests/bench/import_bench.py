# ruff: noqa: T201 - a script whose output is its purpose
"""Misses of a guest while its RBD image is imported over 50 MB/s: ``python -m tests.bench.import_bench --help``.

librbd imports a disk whose source is behind a link (16 KiB pieces, first come first served, 1 ms): from our gateway,
and from a plain HTTP server with ranges at the far end of such a link. ``execute`` runs in its own process with two
objects at once; beside it a client with QEMU's settings reads 4 KiB of objects that have not arrived, one read every
30 ms. Rows take turns, and all samples of a row are taken together. Needs root and the lab's Ceph; brings it up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from drivers.ceph import RbdImports
from labs.openstack import OpenStackLab
from tests.bench.paced_link import PIECE_BYTES, Link
from tests.drivers.ceph.imports import GuestIo, imports_of
from tests.drivers.ceph.scratch import ScratchImage, scratch_image
from tests.nbd.programs import qemu_nbd
from tests.stream.http.servers import http_config
from tests.stream.streams import MIB, REPOSITORY, until
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.stream import ask, launch, stop
from whimbrel.stream.http.token import url

LINK_BYTES_PER_S = 50e6
OBJECT = 4 * MIB
EVERY_S = 0.03
DELAY_S = 0.001
PLAIN, BOTH, AFTER = "plain HTTP server", "gateway, hydrating at the same time", "gateway, hydrated before (the mode)"


def serve_plain(disk: Path, address: str) -> None:
    """The peer: HTTP/1.1 with ranges, a thread a connection, all that it sends over one link. Tells its port first."""
    link, size = Link(LINK_BYTES_PER_S), disk.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self._head(200, size)

        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
            time.sleep(DELAY_S)
            self._head(206, last - first + 1)
            with disk.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left:
                    piece = file.read(min(PIECE_BYTES, left))
                    left -= len(piece)
                    time.sleep(max(link.passes_at(len(piece)) - time.monotonic(), 0))
                    self.wfile.write(piece)

        def _head(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    with Server((address, 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


@contextlib.contextmanager
def plain(disk: Path, address: str) -> Iterator[str]:
    """The peer as a process."""
    argv = [sys.executable, "-m", "tests.bench.import_bench", "--serve-plain", str(disk), address]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://{address}:{int(process.stdout.readline())}/disk"
        finally:
            process.terminate()


@contextlib.contextmanager
def gateway(where: Path, disk: Path, address: str, *, hydrate: bool) -> Iterator[str]:
    """Our server, its source a qemu-nbd at the other end of the link."""
    with qemu_nbd(where, disk, "--read-only") as nbd:
        program = [sys.executable, "-m", "tests.bench.paced_link", str(where / "link"), str(nbd)]
        link = subprocess.Popen([*program, "--rate", str(LINK_BYTES_PER_S), "--delay-s", str(DELAY_S)], cwd=REPOSITORY)
        try:
            until((where / "link").exists, "link")
            source = NbdEndpoint(unix_path=str(where / "link"))
            config = http_config(where, disk.stat().st_size, source, bulk_from=("self",))
            assert config.http is not None
            # Guest and execution are on this machine, so they are told apart by what they do, as those of other hosts.
            http = config.http.model_copy(update={"address": address, "bulk_from": ()})
            file = where / "disk.json"
            file.write_text(config.model_copy(update={"http": http}).model_dump_json(), encoding="utf-8")
            launch(file)
            try:
                if hydrate:
                    until(lambda: ask(where / "control", "status")["complete"], "end of the hydration", 300)
                yield url(address, ask(where / "control", "status")["http"]["port"], where / "disk.token")
            finally:
                stop(where / "control", config_path=file)
        finally:
            link.terminate()
            link.wait(10)


def sampled(imports: RbdImports, image: ScratchImage, address: str, size: int) -> tuple[list[float], float]:
    """Seconds of reads that missed while the import was carried out, and its bytes per second."""
    imports.prepare(image.pool, image.name, address, size_bytes=size, object_bytes=OBJECT)
    done, ended, rng = [0], threading.Event(), random.Random(5)

    def execute() -> None:
        def progress(objects: int, _total: int) -> None:
            done[0] = objects

        imports.execute(image.pool, image.name, requests=2, should_stop=lambda: False, on_progress=progress)
        ended.set()

    guest = GuestIo(imports, image)
    waits: list[float] = []
    try:
        began = time.monotonic()
        threading.Thread(target=execute, daemon=True).start()
        objects = size // OBJECT
        while not ended.is_set():
            missing = range(done[0] + 6, objects)  # what the execution has in flight is not asked for
            if not missing:
                ended.wait(0.05)
                continue
            at = rng.choice(missing) * OBJECT + rng.randrange(OBJECT // 4096) * 4096
            asked = time.monotonic()
            guest.read(at, 4096)
            waits.append(time.monotonic() - asked)
            time.sleep(EVERY_S)
        return waits, size / (time.monotonic() - began)
    finally:
        guest.close()


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve-plain", nargs=2, metavar=("DISK", "ADDRESS"), help="be the peer")
    options = parser.parse_args()
    if options.serve_plain:
        serve_plain(Path(options.serve_plain[0]), options.serve_plain[1])
    root = os.environ.get("WHIMBREL_OPENSTACK_ROOT")
    lab = OpenStackLab(Path(root or tempfile.mkdtemp(prefix="importbench")), ("a",), say=print)
    lab.up_ceph()
    cloud, size = lab.cloud("a"), options.size_mib * MIB
    waits: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    try:
        for number in range(options.rounds):
            print(f"round {number + 1}", flush=True)
            for row in (PLAIN, BOTH, AFTER):
                with tempfile.TemporaryDirectory(prefix="wimport") as directory, scratch_image(cloud) as image:
                    where = Path(directory)
                    disk = where / "disk.raw"
                    with disk.open("wb") as file:
                        for _ in range(options.size_mib):
                            file.write(os.urandom(MIB))
                    image.pool = cloud.shared_pool
                    serve: Callable[[], contextlib.AbstractContextManager[str]] = (
                        (lambda: plain(disk, lab.host_address))  # noqa: B023
                        if row == PLAIN
                        else (lambda: gateway(where, disk, lab.host_address, hydrate=row == AFTER))  # noqa: B023
                    )
                    with serve() as address:
                        found, rate = sampled(imports_of(cloud), image, address, size)
                        image.remove()
                    waits.setdefault(row, []).extend(found)
                    rates.setdefault(row, []).append(rate)
    finally:
        if root is None:
            lab.down()
    print(f"\n{options.size_mib} MiB, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}; reads of 4 KiB, ms\n")
    print("| source | misses | p50 | p95 | p99 | max | executed MB/s |\n| --- | --- | --- | --- | --- | --- | --- |")
    for row, values in waits.items():
        cuts = statistics.quantiles(sorted(values), n=100, method="inclusive")
        shown = " | ".join(f"{1000 * value:.1f}" for value in (cuts[49], cuts[94], cuts[98], max(values)))
        print(f"| {row} | {len(values)} | {shown} | {statistics.mean(rates[row]) / 1e6:.1f} |")


if __name__ == "__main__":
    main()
