# ruff: noqa: T201 - a script whose output is its purpose
"""Outage of cold, incremental and streaming over a link: ``python -m tests.bench.downtime_bench``.

The worker lives in a network namespace that reaches the source's disks over 50 MB/s only (tbf on a veth pair); the
target is beside it. The outage is read from the guest's own records, as in the demo; one migration of each mode.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from labs.demo.scene import DATA_OFFSET, MIB, Proof, demo_plan, fill, migrate
from labs.kvm import DiskSpec, GuestSpec, LabGuest
from labs.stage import CLOUD_NAMES, REPOSITORY, Stage
from whimbrel.model.plan import Mode
from whimbrel.runtime.exits import run_and_leave

NAMESPACE = f"wbdown{os.getpid()}"
HOST, MOVER = "198.18.250.1", "198.18.250.2"
RATE = "400mbit"
MODES: tuple[tuple[Mode, dict[str, object], str], ...] = (
    ("cold", {}, "cold"),
    ("incremental", {}, "incremental"),
    ("streaming", {}, "streaming"),
    ("streaming", {"stream": {"precopy": True}}, "stream, precopy"),
)


def ip(*arguments: str, inside: bool = False) -> None:
    """Run ip(8). Raises CalledProcessError."""
    argv = ["ip", "-n", NAMESPACE, *arguments] if inside else ["ip", *arguments]
    subprocess.run(argv, check=True, capture_output=True)


@contextmanager
def link() -> Iterator[None]:
    """A namespace for the worker, shaped on its way from here."""
    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "wbdown0", "type", "veth", "peer", "name", "wbdown1", "netns", NAMESPACE)
        ip("addr", "add", f"{HOST}/30", "dev", "wbdown0")
        ip("link", "set", "wbdown0", "up")
        ip("addr", "add", f"{MOVER}/30", "dev", "wbdown1", inside=True)
        ip("link", "set", "wbdown1", "up", inside=True)
        ip("link", "set", "lo", "up", inside=True)
        shaper = ["tbf", "rate", RATE, "burst", "128kb", "limit", "16mb"]
        subprocess.run(["tc", "qdisc", "add", "dev", "wbdown0", "root", *shaper], check=True)
        yield
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", "wbdown0")
        ip("netns", "del", NAMESPACE)


def forward(port: int, to: int) -> None:
    """Let the namespace reach the Temporal server, which listens on the loopback address only."""
    server = socket.create_server((HOST, port))

    def pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            client, _ = server.accept()
            inner = socket.create_connection(("127.0.0.1", to))
            for pair in ((client, inner), (inner, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def configure(stage: Stage) -> None:
    """The source's disks are read over the link, the target's beside the worker."""
    config = yaml.safe_load(stage.config.read_text())
    config["clouds"][CLOUD_NAMES["a"]] |= {"transport": "tcp", "nbd_host": HOST}
    stage.config.write_text(yaml.safe_dump(config))


def start_worker(stage: Stage, temporal: str) -> subprocess.Popen[bytes]:
    """A worker in the namespace; ready when its log says so."""
    log = stage.directory / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACE, sys.executable, str(REPOSITORY / "worker.py")],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=REPOSITORY,
            env={**stage.environment, "TEMPORAL_ADDRESS": temporal},
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while b"worker.started" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return process


def make_guest(stage: Stage, name: str, size_bytes: int, data_bytes: int) -> LabGuest:
    """A guest on cloud A that writes records, with data on its disk."""
    network = "lab" if stage.lab.has_network("a") and stage.lab.has_network("b") else None
    spec = GuestSpec(name=name, disks=(DiskSpec(size_bytes=size_bytes),), network=network, rate=10, dirty_kib=512)
    guest = stage.lab.create_guest(spec, "a")
    disk = str(guest.disk_paths("a")["vda"])
    for offset in range(0, data_bytes, 512 * MIB):
        fill(disk, DATA_OFFSET + offset, min(512 * MIB, data_bytes - offset))
    guest.start("a")
    return guest


async def measure(stage: Stage, size_bytes: int, data_bytes: int) -> list[Proof]:
    """One migration of each mode, one after the other."""
    client = await stage.up()
    configure(stage)
    port = int(stage.server.address.rpartition(":")[2])
    forward(port, port)
    worker = await asyncio.to_thread(start_worker, stage, f"{HOST}:{port}")
    proofs = []
    try:
        for number, (mode, changes, label) in enumerate(MODES):
            name = f"down-{number}"
            guest = await asyncio.to_thread(make_guest, stage, name, size_bytes, data_bytes)
            await asyncio.sleep(5)
            proof = await migrate(client, stage, guest, demo_plan(name, mode, **changes), label=label, patience_s=900)
            print(f"{label}: outage {proof.outage_s:.1f} s, {proof.moved_bytes / 1e6:.0f} MB moved", flush=True)
            proofs.append(proof)
            for cloud in CLOUD_NAMES:
                await asyncio.to_thread(guest.remove, cloud)
    finally:
        worker.terminate()
        await asyncio.to_thread(worker.wait, 60)
    return proofs


def table(proofs: list[Proof]) -> None:
    """The figures, and how many times shorter each outage is than the cold one."""
    cold = proofs[0].outage_s
    print(f"{'mode':<16} {'outage':>10} {'cold / it':>10} {'moved':>9} {'hit rate':>9} {'lost':>5} {'equal':>6}")
    for proof in proofs:
        figures = proof.report.status.stream
        rate = "-" if figures is None or figures.hit_rate is None else f"{100 * figures.hit_rate:.1f} %"
        times, moved = cold / proof.outage_s, proof.moved_bytes / 1e6
        print(
            f"{proof.mode:<16} {proof.outage_s:>8.1f} s {times:>10.1f} {moved:>6.0f} MB"
            f" {rate:>9} {proof.records_lost:>5} {'yes' if proof.digests_equal else 'NO':>6}"
        )


async def main() -> int:
    """Measure and print; 1 if anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--data-mib", type=int, default=4080)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="whimbrel-downtime-"))
    stage = Stage.at(directory)
    try:
        with link():
            proofs = await measure(stage, int(options.gib * 1024) * MIB, options.data_mib * MIB)
    finally:
        await asyncio.to_thread(stage.down)
        shutil.rmtree(directory, ignore_errors=True)
    print(f"disk {options.gib:g} GiB with {options.data_mib} MiB of data, link 50 MB/s, one run each")
    table(proofs)
    return 0 if all(proof.good for proof in proofs) else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_and_leave(main)
