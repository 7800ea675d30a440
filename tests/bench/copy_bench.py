# ruff: noqa: T201 - a script whose output is its purpose
"""Copy speed against nbdcopy and qemu-img convert, in interleaved runs: ``python -m tests.bench.copy_bench --help``.

A half-empty raw image (extents of 64 KiB to 16 MiB) is copied between two qemu-nbd on unix sockets. Every round runs
every copier once, in a rotating order, so that load from elsewhere hits all alike; ratios are against nbdcopy of the
same round. Our copier runs in a process of its own, as nbdcopy does; the start of the interpreter is not counted, as a
worker runs already; connecting, all digests, the manifest and the last flush are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20


def make_image(path: Path, size_bytes: int, seed: int) -> int:
    """Write data and holes by turns, each 64 KiB to 16 MiB; returns the bytes of data."""
    rng = random.Random(seed)
    data_bytes = at = 0
    with path.open("wb") as file:
        file.truncate(size_bytes)
        while at < size_bytes:
            length = min(int(65536 * 2 ** rng.uniform(0, 8)) // 65536 * 65536, size_bytes - at)
            file.seek(at)
            file.write(rng.randbytes(length))
            data_bytes += length
            at += length + int(65536 * 2 ** rng.uniform(0, 8)) // 65536 * 65536
    return data_bytes


@contextmanager
def served(image: Path, socket: Path, *, writable: bool) -> Iterator[str]:
    command = ["qemu-nbd", "-f", "raw", "-k", str(socket), "--shared=16", "--persistent", "--discard=unmap"]
    command += ["--detect-zeroes=off"] + ([] if writable else ["-r"]) + [str(image)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("qemu-nbd did not start")
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def peak_rss_mib() -> float:
    """Of this process alone: ru_maxrss would begin with the parent's figure."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def whimbrel_once(child: list[str], options: argparse.Namespace) -> None:
    """The child process: one copy, figures as JSON on standard output."""
    from whimbrel.dataplane import CopySettings, Manifest, copy, open_device
    from whimbrel.model.endpoint import NbdEndpoint

    source, target, manifest = child
    settings = CopySettings()
    if options.variant:
        lanes, request_kib, window_mib = (int(part) for part in options.variant[0].split(":"))
        settings = CopySettings(lanes=lanes, request_bytes=request_kib << 10, in_flight_bytes=window_mib * MIB)
    started, cpu = time.monotonic(), time.process_time()
    reader = open_device(NbdEndpoint(unix_path=source))
    writer = open_device(NbdEndpoint(unix_path=target, writable=True))
    with Manifest.open(manifest, reader.size_bytes) as book:
        result = copy(
            reader,
            writer,
            extents=reader.extents(),
            manifest=book,
            epoch="bench",
            settings=settings,
            target_is_zero=True,
        )
    reader.close()
    writer.close()
    figures = {
        "elapsed_s": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "rss_mib": peak_rss_mib(),
        "sent_mib": result.sent_bytes / MIB,
    }
    print(json.dumps(figures))


def run_once(copier: str, where: Path) -> dict[str, float]:
    """One copy to a fresh target, compared afterwards."""
    image, target = where / "source.raw", where / "target.raw"
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(image.stat().st_size)
    with served(image, where / "s", writable=False) as source, served(target, where / "t", writable=True) as sink:
        if copier.startswith("whimbrel"):
            manifest = where / "manifest"
            manifest.unlink(missing_ok=True)
            command = [sys.executable, "-m", "tests.bench.copy_bench", "--child", str(where / "s"), str(where / "t")]
            command += [str(manifest), *(["--variant", copier.split(" ")[1]] if " " in copier else [])]
            figures: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        else:
            command = {
                "nbdcopy": ["nbdcopy", "--connections=4", "--requests=64", "--destination-is-zero", "--flush"],
                "qemu-img": ["qemu-img", "convert", "-n", "-W", "-m8", "--target-is-zero", "-f", "raw", "-O", "raw"],
            }[copier] + [source, sink]
            started = time.monotonic()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures = {"elapsed_s": time.monotonic() - started, "cpu_s": cpu_s}
    subprocess.run(["cmp", str(image), str(target)], check=True)
    return figures


def main() -> None:
    """Run the rounds and print ratios and medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", action="append", help="also run with LANES:REQUEST_KIB:WINDOW_MIB", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "."))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--child", nargs=3, metavar=("SOURCE", "TARGET", "MANIFEST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        whimbrel_once(options.child, options)
        return
    copiers = [name for name in ("nbdcopy", "qemu-img") if shutil.which(name)]
    copiers[1:1] = ["whimbrel", *(f"whimbrel {variant}" for variant in options.variant)]
    where = Path(tempfile.mkdtemp(prefix="cb-", dir=options.directory))
    rounds: list[dict[str, dict[str, float]]] = []
    try:
        data_bytes = make_image(where / "source.raw", options.size_mib * MIB, options.seed)
        for number in range(options.rounds):
            turn = number % len(copiers)
            rounds.append({name: run_once(name, where) for name in copiers[turn:] + copiers[:turn]})
    finally:
        shutil.rmtree(where)
    ratios = {
        name: [each["nbdcopy"]["elapsed_s"] / each[name]["elapsed_s"] for each in rounds]
        for name in copiers
        if "nbdcopy" in copiers
    }
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    if options.json:
        print(json.dumps({"data_mib": data_bytes / MIB, "rounds": rounds, "ratios": ratios, "medians": medians}))
        return
    print(f"{data_bytes // MIB} MiB of data in {options.size_mib} MiB, {options.rounds} rounds; higher ratio is faster")
    for name in copiers:
        seconds = statistics.median(each[name]["elapsed_s"] for each in rounds)
        cpu_s = statistics.median(each[name]["cpu_s"] for each in rounds)
        values = " ".join(f"{value:.2f}" for value in ratios.get(name, []))
        print(f"{name:20} median {seconds:.2f} s, CPU {cpu_s:.2f} s, ratio {medians.get(name, 0):.2f} [{values}]")
    print(f"RSS of our copier: {max(each['whimbrel']['rss_mib'] for each in rounds):.0f} MiB")


if __name__ == "__main__":
    main()
