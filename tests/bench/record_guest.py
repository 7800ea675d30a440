# ruff: noqa: T201 - a script whose output is its purpose
"""Boots a real guest with its disk behind the recording server: ``python -m tests.bench.record_guest --help``.

The disk is an image of ``guest_image``; kernel and initrd are this machine's, unless others are named. The trace is cut
at what the guest says on its console: boot, start of an application, database. The disk keeps what the guest wrote, so
a second run on the same image is a later boot of the same machine.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from whimbrel.moverimage.debian import newest_kernel
from whimbrel.stream.prefetch.record import pass_through
from whimbrel.stream.prefetch.summary import summary
from whimbrel.stream.prefetch.trace import Record, read_trace, write_trace

LONGEST_S = 600.0
PHASES = {"boot": (None, "booted"), "app": ("app-begin", "app-end"), "db": ("db-begin", "db-end")}


def this_machines() -> tuple[Path, Path]:
    """Its newest kernel and the initrd of that."""
    kernel = newest_kernel()
    return kernel, Path(f"/boot/initrd.img-{kernel.name.removeprefix('vmlinuz-')}")


def run_guest(
    image: Path, trace: Path, words: str, memory_mib: int, start: tuple[Path, Path] | None = None
) -> dict[str, float]:
    """Boot and wait for the end; when the guest said what, in seconds since the recording began.

    ``start`` is kernel and initrd.
    """
    said: dict[str, float] = {}
    kernel, initrd = start or this_machines()
    with tempfile.TemporaryDirectory(prefix="whb") as directory:
        here = Path(directory)
        server = pass_through(image, here / "nbd", trace, here, identity=f"benchmark guest {image.stem}")
        began = time.monotonic()
        command = [
            *(
                "qemu-system-x86_64",
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-smp",
                "2",
                "-m",
                str(memory_mib),
            ),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-drive", f"file=nbd+unix:///?socket={here / 'nbd'},format=raw,if=virtio,discard=unmap"),
            *("-append", f"root=/dev/vda console=ttyS0 quiet systemd.show_status=0 systemd.getty_auto=no {words}"),
        ]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "WHB " in line:
                    said[line.split("WHB ")[1].split()[0]] = time.monotonic() - began
                    print(f"{time.monotonic() - began:7.1f} s  {line.strip()}", flush=True)
                if time.monotonic() - began > LONGEST_S:
                    raise TimeoutError("the guest takes too long")
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            server.stop()
    return said


def scale(trace: Path, span_s: float) -> None:
    """Make all times of a trace shorter or longer, so that it takes so long: a busy machine's guest is slow."""
    whole = read_trace(trace)
    records = list(whole.records)
    factor = span_s / records[-1].at_s
    write_trace(trace, whole.header, [[each._replace(at_s=each.at_s * factor) for each in records]])


def cut(trace: Path, said: dict[str, float], stem: Path, boot_s: float | None = None) -> None:
    """One trace per phase."""
    whole = read_trace(trace)
    records = whole.segments[-1]
    for name, (begin, end) in PHASES.items():
        if end not in said:
            continue
        start = 0.0 if begin is None else said[begin]
        chosen = [each for each in records if start <= each.at_s <= said[end]]
        base = chosen[0].at_s if chosen else 0.0
        path = Path(f"{stem}-{name}.trace")
        write_trace(path, whole.header, [[Record(each.at_s - base, *each[1:]) for each in chosen]])
        if name == "boot" and boot_s is not None:
            scale(path, boot_s)
        print(path, path.stat().st_size, summary(read_trace(path)))


def main() -> None:
    """Boot once and write the traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("stem", type=Path, help="the traces are STEM-boot.trace and so on")
    parser.add_argument(
        "--words", default="whb.app=web whb.queries=3000 whb.seed=1", help="for the kernel command line"
    )
    parser.add_argument("--memory-mib", type=int, default=384)
    parser.add_argument("--boot-s", type=float, help="stretch the boot's times to this: where the machine was busy")
    parser.add_argument("--kernel", type=Path, help="with --initrd: the foreign system's")
    parser.add_argument("--initrd", type=Path)
    options = parser.parse_args()
    start = (options.kernel, options.initrd) if options.kernel else None
    whole = Path(f"{options.stem}-whole.trace")
    whole.unlink(missing_ok=True)
    said = run_guest(options.image, whole, options.words, options.memory_mib, start)
    cut(whole, said, options.stem, options.boot_s)
    whole.unlink()


if __name__ == "__main__":
    main()
