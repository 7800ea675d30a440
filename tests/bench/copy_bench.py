# ruff: noqa: T201 - a script whose output is its purpose
"""Copy speed against nbdcopy and qemu-img convert, in interleaved runs: ``python -m tests.bench.copy_bench --help``.

A half-empty raw image (extents of 64 KiB to 16 MiB) is copied between two qemu-nbd on unix sockets. Every round runs
every copier once, in a random order, so that load from elsewhere hits all alike; ratios are against nbdcopy of the
same round. CPU seconds, of the copier alone and with both servers, depend less on that load. ``--big`` copies the same
amount of data from a disk of 4 GiB and from one of 1 TiB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.copiers import OTHERS, Figures, run_once
from tests.bench.disks import GIB, MIB, half_empty, sparse

BIG_SIZES = {"4 GiB": 4 * GIB, "1 TiB": 1024 * GIB}
Round = dict[str, Figures]


def interleaved(names: list[str], rounds: int, rng: random.Random, run: Callable[[str], Figures]) -> list[Round]:
    """Run every name once per round, in random order."""
    results = []
    for _ in range(rounds):
        order = rng.sample(names, len(names))
        results.append({name: run(name) for name in order})
    return results


def middle(rounds: list[Round], name: str, figure: str) -> float:
    """Median of one figure of one copier."""
    return statistics.median(each[name][figure] for each in rounds)


def compare_copiers(options: argparse.Namespace, where: Path) -> dict[str, object]:
    """Ours, its variants and the others that are installed; prints a table unless JSON is wanted."""
    copiers = ["whimbrel", *(f"whimbrel {variant}" for variant in options.variant)]
    copiers += [name for name in OTHERS if shutil.which(name)]
    image = where / "source.raw"
    data_bytes = half_empty(image, options.size_mib * MIB, options.seed)
    load = [os.getloadavg()[0]]
    rounds = interleaved(copiers, options.rounds, random.Random(), lambda name: run_once(name, image))
    load.append(os.getloadavg()[0])
    image.unlink()
    base = "nbdcopy" if "nbdcopy" in copiers else "whimbrel"
    ratios = {name: [each[base]["elapsed_s"] / each[name]["elapsed_s"] for each in rounds] for name in copiers}
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    if not options.json:
        print(
            f"{data_bytes // MIB} MiB of data in {options.size_mib} MiB, {options.rounds} rounds in random order,",
            end="",
        )
        print(f" {os.cpu_count()} cores, load {load[0]:.1f} to {load[1]:.1f}")
        print(f"{'':22}{'seconds':>9}{'CPU':>7}{'+servers':>10}   times as fast as {base} (per round)")
        for name in copiers:
            figures = (middle(rounds, name, figure) for figure in ("elapsed_s", "cpu_s", "total_cpu_s"))
            line = "{:9.2f}{:7.2f}{:10.2f}".format(*figures)
            values = " ".join(f"{value:.2f}" for value in sorted(ratios[name]))
            print(f"{name:22}{line}   {medians[name]:.2f} [{values}]")
        print(f"memory of ours: {max(each['whimbrel']['rss_mib'] for each in rounds):.0f} MiB at most")
    return {"data_mib": data_bytes / MIB, "load": load, "rounds": rounds, "ratios": ratios, "medians": medians}


def compare_sizes(options: argparse.Namespace, where: Path) -> dict[str, object]:
    """The same data on a small and on a huge disk; the time should depend on the data alone."""
    images = {name: where / f"{size}.raw" for name, size in BIG_SIZES.items()}
    for name, image in images.items():
        sparse(image, BIG_SIZES[name], options.big_mib * MIB, options.seed)
    rounds = interleaved(
        list(images), options.big_rounds, random.Random(), lambda name: run_once("whimbrel", images[name])
    )
    ratio = statistics.median(each["1 TiB"]["elapsed_s"] / each["4 GiB"]["elapsed_s"] for each in rounds)
    if not options.json:
        print(f"\n{options.big_mib} MiB of data, {options.big_rounds} rounds; whimbrel")
        for name in images:
            seconds, cpu_s, kib = (middle(rounds, name, each) for each in ("elapsed_s", "cpu_s", "manifest_kib"))
            rss_mib = max(each[name]["rss_mib"] for each in rounds)
            print(
                f"disk of {name}: {seconds:.2f} s, CPU {cpu_s:.2f} s, {rss_mib:.0f} MiB memory, manifest {kib:.0f} KiB"
            )
        print(f"1 TiB takes {ratio:.2f} times as long as 4 GiB")
    return {"data_mib": options.big_mib, "rounds": rounds, "ratio": ratio}


def main() -> None:
    """Run the rounds and print ratios and medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variant", action="append", help="also run with LANES:REQUEST_KIB:WINDOW_MIB", default=[])
    parser.add_argument("--big", action="store_true", help="also a sparse disk of 1 TiB against one of 4 GiB")
    parser.add_argument("--big-mib", type=int, default=1024, help="data on them, a multiple of 4")
    parser.add_argument("--big-rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the images' content")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "."))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    where = Path(tempfile.mkdtemp(prefix="cb-", dir=options.directory))
    results: dict[str, object] = {}
    try:
        if options.rounds:
            results |= compare_copiers(options, where)
        if options.big:
            results["big"] = compare_sizes(options, where)
    finally:
        shutil.rmtree(where)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
