# ruff: noqa: T201 - a script whose output is its purpose
"""The streaming server's speed: ``python -m tests.bench.stream_bench --help``.

Local: everything is at the target already; fio's nbd engine over unix sockets against this server, qemu-nbd (raw) and
nbdkit (file), files in RAM. Every round runs every server once per case, in random order; figures are medians, ratios
are of medians. ``mirror`` is this server with each write also flushed in a qcow2 overlay behind a local qemu-nbd;
``journal`` has the same shadow, takes a burst of one run, and is drained before the next. Then both once more with the
shadow behind 50 MB/s and 1 ms.

Link: a source behind 50 MB/s (a network namespace with tbf), random reads of missing chunks while the background runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.nbd.programs import nbdkit, qemu_nbd, run
from tests.stream.rawclient import RawClient
from tests.stream.streams import CHUNK, MIB, REPOSITORY, Process, config_for, process, until
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import protocol as p
from whimbrel.stream.control import ask
from whimbrel.stream.protect import ProtectConfig
from whimbrel.stream.protect.config import ProtectMode

CASES: dict[str, tuple[str, str, int, *tuple[str, ...]]] = {
    "randread 4K qd1": ("randread", "4k", 1),
    "randread 4K qd16": ("randread", "4k", 16),
    "randwrite 4K qd1": ("randwrite", "4k", 1),
    "randwrite 4K qd1, flushed": ("randwrite", "4k", 1, "--fsync=1"),
    "randwrite 4K qd16": ("randwrite", "4k", 16),
    "read 1M qd4": ("read", "1m", 4),
    "write 1M qd4": ("write", "1m", 4),
}
OURS = "whimbrel"
PROTECTED: dict[str, ProtectMode] = {"whimbrel, mirror": "mirror", "whimbrel, journal": "journal"}
NAMESPACE = "wstreambench"
ADDRESSES = ("10.219.77.1", "10.219.77.2")
LINK_BYTES_PER_S = 50e6
BACKGROUNDS: dict[str, dict[str, object]] = {
    "paused": {"background": False},
    "with QoS (steered window)": {},
    "without QoS (window 16 MiB)": {"window_bytes": 16 * MIB},
}


def fio_engine() -> bool:
    """Whether fio is here with its nbd engine."""
    if not shutil.which("fio"):
        return False
    told = subprocess.run(["fio", "--enghelp=nbd"], capture_output=True, text=True, check=False)
    return told.returncode == 0 and "uri" in told.stdout


def fio(socket: Path, seconds: float, pattern: str, block: str, depth: int, *more: str) -> float:
    """Requests per second."""
    argv = ["fio", "--name=b", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", f"--rw={pattern}"]
    argv += [f"--bs={block}", f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--output-format=json"]
    argv += ["--randrepeat=0", "--norandommap", *more]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    job = json.loads(told[told.index("{") :])["jobs"][0]
    return float(job["write" if "write" in pattern else "read"]["iops"])


def _says(server: Process, key: str) -> bool:
    return bool(server.status()[key])


def image(path: Path, size_bytes: int) -> None:
    """Data without holes."""
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))


@contextlib.contextmanager
def far(directory: Path, socket: Path) -> Iterator[Path]:
    """A server that is 1 ms and 50 MB/s away."""
    argv = [sys.executable, "-m", "tests.bench.paced_link", str(directory / "far"), str(socket), "--up"]
    program = subprocess.Popen([*argv, "--rate", str(LINK_BYTES_PER_S)], cwd=REPOSITORY)
    try:
        until((directory / "far").exists, "link")
        yield directory / "far"
    finally:
        program.kill()
        program.wait()


@contextlib.contextmanager
def servers(where: Path, size_bytes: int, *, shadows_far: bool = False) -> Iterator[dict[str, Path]]:
    """Name and socket of each, all with the same bytes local; with ``shadows_far`` ours alone."""
    image(where / "source.raw", size_bytes)
    found: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        for name in (OURS, *PROTECTED):
            directory = where / name.replace(", ", "-")
            directory.mkdir()
            (directory / "source.raw").hardlink_to(where / "source.raw")
            protect = ProtectConfig()
            if name in PROTECTED:
                overlay, base = directory / "shadow.qcow2", str(where / "source.raw")
                run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", str(overlay))
                socket = stack.enter_context(qemu_nbd(directory, overlay, form="qcow2"))
                if shadows_far:
                    socket = stack.enter_context(far(directory, socket))
                shadow = NbdEndpoint(unix_path=str(socket), writable=True)
                protect = ProtectConfig(mode=PROTECTED[name], shadow=shadow)
            server = stack.enter_context(process(directory, config_for(directory, size_bytes, protect=protect)))
            until(partial(_says, server, "complete"), "end of the hydration")
            found[name] = directory / "nbd"
        for name in ("qemu-nbd", "nbdkit"):
            if shutil.which(name) and not shadows_far:
                directory = where / name
                directory.mkdir()
                shutil.copy(where / "source.raw", directory / "disk.raw")
                opened = (
                    qemu_nbd(directory, directory / "disk.raw")
                    if name == "qemu-nbd"
                    else nbdkit(directory, "file", str(directory / "disk.raw"))
                )
                found[name] = stack.enter_context(opened)
        yield found


def speed(
    where: Path, rounds: int, seconds: float, size_bytes: int, *, shadows_far: bool = False
) -> dict[str, dict[str, float]]:
    """Median requests per second by case and server; with ``shadows_far`` of writes alone."""
    rng = random.Random()
    cases = {case: what for case, what in CASES.items() if "write" in case or not shadows_far}
    told: dict[str, dict[str, list[float]]] = {case: {} for case in cases}
    with servers(where, size_bytes, shadows_far=shadows_far) as sockets:
        for _ in range(rounds):
            for case, what in cases.items():
                for name in rng.sample(sorted(sockets), len(sockets)):
                    if name in PROTECTED and "write" not in case:
                        continue
                    told[case].setdefault(name, []).append(fio(sockets[name], seconds, *what))
                    if name in PROTECTED:
                        ask(sockets[name].with_name("control"), "drain", timeout_s=50)
    return {case: {name: statistics.median(rates) for name, rates in each.items()} for case, each in told.items()}


@contextlib.contextmanager
def link() -> Iterator[None]:
    """A namespace behind 50 MB/s in its outward direction; needs root."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "wsb0", "type", "veth", "peer", "name", "wsb1", "netns", NAMESPACE)
        ip("addr", "add", f"{ADDRESSES[0]}/24", "dev", "wsb0")
        ip("link", "set", "wsb0", "up")
        ip("-n", NAMESPACE, "addr", "add", f"{ADDRESSES[1]}/24", "dev", "wsb1")
        ip("-n", NAMESPACE, "link", "set", "wsb1", "up")
        rate = str(int(LINK_BYTES_PER_S * 8))
        shaper = ["tbf", "rate", rate, "burst", "128kb", "limit", "16mb"]
        subprocess.run(["tc", "-n", NAMESPACE, "qdisc", "add", "dev", "wsb1", "root", *shaper], check=True)
        yield
    finally:
        ip("netns", "del", NAMESPACE)


def miss_latency(where: Path, seconds: float, size_bytes: int) -> dict[str, dict[str, float]]:
    """Per background: milliseconds that reads of missing chunks took, and the background's MB/s meanwhile."""
    found: dict[str, dict[str, float]] = {}
    image(where / "source.raw", size_bytes)
    with link():
        argv = ["ip", "netns", "exec", NAMESPACE, "qemu-nbd", "-r", "-f", "raw", "-p", "10809", "-b", ADDRESSES[1]]
        source = subprocess.Popen(
            [*argv, "--persistent", "--shared=16", str(where / "source.raw")], stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(0.5)
            for name, changes in BACKGROUNDS.items():
                directory = where / f"link{len(found)}"
                directory.mkdir()
                config = config_for(directory, size_bytes, NbdEndpoint(host=ADDRESSES[1]), **changes)
                with process(directory, config) as server:
                    until(partial(_says, server, "holes_known"), "list of holes")
                    found[name] = sampled(server, directory / "nbd", seconds, size_bytes)
                shutil.rmtree(directory)
        finally:
            source.kill()
            source.wait()
    return found


def sampled(server: Process, socket: Path, seconds: float, size_bytes: int) -> dict[str, float]:
    """Reads of 4 KiB every 30 ms from the disk's end, where the sweep comes last; the server's word on the misses."""
    client = RawClient(socket)
    chunks = random.Random(1).sample(range(size_bytes // CHUNK * 3 // 4, size_bytes // CHUNK), int(seconds / 0.03))
    began = time.monotonic()
    before = server.status()["statistics"]["background_bytes"]
    for number, chunk in enumerate(chunks):
        time.sleep(max(began + 0.03 * number - time.monotonic(), 0))
        client.ask(p.CMD_READ, chunk * CHUNK, 4096)
    client.close()
    told = server.status()["statistics"]
    figures = {f"{name} ms": told["miss_latency"][f"{name}_ms"] for name in ("p50", "p95", "p99")}
    rate = (told["background_bytes"] - before) / (time.monotonic() - began) / 1e6
    return {"misses": told["misses"], **figures, "background MB/s": rate}


def print_speed(told: dict[str, dict[str, float]], rounds: int, what: str) -> None:
    """A table of requests per second; in brackets, how many times the other server's."""
    names = [name for name in (OURS, "qemu-nbd", "nbdkit", *PROTECTED) if name in told["write 1M qd4"]]
    print(f"{what}, requests/s, medians of {rounds} rounds (in brackets: {OURS} is so many times as fast)")
    print(f"{'':27}" + "".join(f"{name:>20}" for name in names))
    for case, rates in told.items():
        cells = ["-" if name not in rates else f"{rates[name]:.0f} ({rates[OURS] / rates[name]:.2f})" for name in names]
        print(f"{case:27}" + "".join(f"{cell:>20}" for cell in cells))


def main() -> None:
    """Run what can be run here, and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one fio run")
    parser.add_argument("--size-mib", type=int, default=128)
    parser.add_argument("--link-seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    where = Path(tempfile.mkdtemp(prefix="wsbench", dir="/dev/shm"))
    told: dict[str, object] = {}
    try:
        if fio_engine():
            (where / "local").mkdir()
            local = speed(where / "local", options.rounds, options.seconds, options.size_mib * MIB)
            told["local"] = local
            if not options.json:
                print_speed(local, options.rounds, "Local")
            shutil.rmtree(where / "local")
            (where / "far").mkdir()
            away = speed(where / "far", options.rounds, options.seconds, options.size_mib * MIB, shadows_far=True)
            told["shadow far away"] = away
            if not options.json:
                print_speed(away, options.rounds, "\nShadow behind 50 MB/s and 1 ms")
        elif not options.json:
            print("Local speed: left out, fio with the nbd engine is not installed")
        if os.geteuid() == 0:
            (where / "link").mkdir()
            latency = miss_latency(where / "link", options.link_seconds, 4 * options.size_mib * MIB)
            told["miss latency"] = latency
            if not options.json:
                print(f"\nMiss latency over {LINK_BYTES_PER_S / 1e6:.0f} MB/s")
                for name, figures in latency.items():
                    print(f"{name:30}" + "".join(f"{key:>16} {value:6.1f}" for key, value in figures.items()))
        elif not options.json:
            print("Miss latency: left out, a network namespace needs root")
    finally:
        shutil.rmtree(where)
    if options.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
