# ruff: noqa: T201 - a script whose output is its purpose
"""Hit rates of a real server by prefetch policy: ``python -m tests.bench.prefetch_bench --help``.

Recorded traces (``record_guest``: a Debian guest's boot, the start of a program in it, SQLite queries) and a generated
zipf load are played, with their pauses, against ``python -m whimbrel.stream`` whose source is a ``qemu-nbd`` behind a
link of 50 MB/s and 1 ms (``paced_link``). The disk is 3 GiB of data without holes; each run starts on an empty target.

A hit is a read request that waited for nothing. Traces ``a`` were used while the predictors were made (*tuning*);
``b`` are from another image (other contents, other places), another program and other queries (*judging*, the default).
The boot set is searched in the image's own inodes, directories and heads of programs, which lie in the disk
(``skeleton``). The history is always the run before the one that is played: another boot, other queries, other memory
size. Traces ``u`` (``--foreign``) are boots of a system that nothing was made with.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.disks import MIB, served
from tests.bench.skeleton import put
from tests.stream.streams import REPOSITORY, client_of, config_for, process, until
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.stream.config import PrefetchConfig
from whimbrel.stream.prefetch.replay import replay
from whimbrel.stream.prefetch.trace import Record, TraceHeader, read_trace, write_trace

TRACES = REPOSITORY / "tests/stream/traces"
SIZE = 3 << 30
POLICIES = ("none", "sweep", "sequential", "online", "bootset", "correlation", "history", "all")
LOADS = ("boot", "app", "db", "zipf")


def prefetch_for(policy: str, history: Path) -> PrefetchConfig:
    """The configuration that a policy's name stands for."""
    off = dict.fromkeys(("ordered", "sequential", "locality", "correlation", "bootset"), False)
    told: dict[str, dict[str, Any]] = {
        "none": off,
        "sweep": off,
        "sequential": {**off, "sequential": True},
        "online": {**off, "sequential": True, "locality": True},
        "bootset": {},
        "correlation": {**off, "correlation": True, "history": (str(history),)},
        "history": {**off, "ordered": True, "history": (str(history),)},
        "all": {"history": (str(history),)},
    }
    return PrefetchConfig(**told[policy])


def zipf(seed: int, disk: int, count: int = 8000) -> list[Record]:
    """Reads of 4 KiB from 512 MiB by a zipf law (exponent 1.1); ``disk`` says where the popular ones lie."""
    blocks = list(range(512 * MIB // 4096))
    random.Random(disk).shuffle(blocks)
    weights = list(itertools.accumulate(1 / rank**1.1 for rank in range(1, len(blocks) + 1)))
    rng = random.Random(seed)
    chosen = rng.choices(blocks, cum_weights=weights, k=count)
    return [Record(n * 0.001, "read", (1 << 30) + block * 4096, 4096) for n, block in enumerate(chosen)]


def traces_for(load: str, kind: str, where: Path) -> tuple[Path, Path]:
    """The history and the trace to play."""
    if load != "zipf":
        return TRACES / f"{kind}1-{load}.trace", TRACES / f"{kind}2-{load}.trace"
    paths = where / f"{kind}1-zipf.trace", where / f"{kind}2-zipf.trace"
    for number, path in enumerate(paths):
        write_trace(path, TraceHeader(SIZE, 65536, "zipf"), [zipf(number + 10 * ord(kind), ord(kind))])
    return paths


def play(policy: str, history: Path, trace: Path, where: Path, source: Path, speed: float) -> dict[str, Any]:
    """One run on an empty target."""
    with tempfile.TemporaryDirectory(prefix="pf", dir=where) as name:
        here = Path(name)
        config = config_for(
            here,
            SIZE,
            NbdEndpoint(unix_path=str(source)),
            background=policy != "none",
            prefetch=prefetch_for(policy, history),
        )
        with process(here, config) as server:
            until(lambda: server.status()["holes_known"], "list of holes")
            device = client_of(config)
            played = replay(device, read_trace(trace).records, speed=speed)
            device.close()
            status = server.status()
    took = sorted(played.read_s)
    return {
        **status["statistics"]["reads"],
        "miss_ms": status["statistics"]["miss_latency"],
        "read_p99_ms": round(took[len(took) * 99 // 100] * 1000, 2),
        "elapsed_s": round(played.elapsed_s, 2),
        "paused_s": round(played.paused_s, 2),
        "predictors": status["prefetch"]["predictors"],
        "boot_set": status["prefetch"]["boot_set"],
    }


def run(loads: Iterable[str], options: argparse.Namespace, where: Path) -> dict[str, Any]:
    """All policies on all loads; prints a line for each."""
    image, socket, link = where / "source.raw", where / "s", where / "l"
    with image.open("wb") as file:
        piece = random.Random(1).randbytes(MIB)
        for _ in range(SIZE // MIB):
            file.write(piece)
    found: dict[str, Any] = {}
    with served(image, socket, writable=False):
        command = [sys.executable, "-m", "tests.bench.paced_link", str(link), str(socket), f"--rate={options.rate}"]
        paced = subprocess.Popen(command, cwd=REPOSITORY)
        try:
            until(link.exists, "link")
            for load in loads:
                kind = "a" if options.tuning else "u" if options.foreign else "b"
                history, trace = traces_for(load, kind, where)
                if load == "boot":
                    with image.open("r+b") as file:
                        put(TRACES / f"{kind}2.skeleton", file)
                for policy in options.policy or POLICIES:
                    told = play(policy, history, trace, where, link, options.speed)
                    found[f"{load} {policy}"] = told
                    if not options.json:
                        print(line(load, policy, told), flush=True)
        finally:
            paced.kill()
            paced.wait()
    return found


def line(load: str, policy: str, told: dict[str, Any]) -> str:
    """For people."""
    miss = told["miss_ms"]
    return (
        f"{load:6}{policy:13}{told['hits'] + told['misses']:7}{100 * told['hit_rate']:8.2f} %"
        f"{_ms(miss['p50_ms'])}{_ms(miss['p95_ms'])}{_ms(miss['p99_ms'])}{told['elapsed_s']:9.1f}"
    )


def _ms(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.1f}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", action="append", choices=LOADS, help="default: all")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all")
    parser.add_argument("--tuning", action="store_true", help="the traces that the predictors were made with")
    parser.add_argument("--foreign", action="store_true", help="boots of another system (load boot only)")
    parser.add_argument("--speed", type=float, default=1.0, help="a guest so many times as fast")
    parser.add_argument("--rate", type=float, default=50e6, help="of the link, bytes/s")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "."))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.foreign:
        options.load = ["boot"]
    if not options.json:
        print(f"{'judging' if not options.tuning else 'tuning'} traces, {options.rate / 1e6:.0f} MB/s, 1 ms, ", end="")
        print(f"speed {options.speed:g}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{'load':6}{'policy':13}{'reads':>7}{'hits':>10}   miss p50 ms  p95     p99   took s")
    with tempfile.TemporaryDirectory(prefix="pfb", dir=options.directory) as name:
        found = run(options.load or LOADS, options, Path(name))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
