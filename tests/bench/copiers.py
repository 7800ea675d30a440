"""One copy by one copier, from a served image to a fresh one, compared afterwards."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.disks import MIB, differ, empty, served

Figures = dict[str, float]

# Both are told what ours is told: the target is a fresh volume, and all must be flushed at the end.
OTHERS = {
    "nbdcopy": ["nbdcopy", "--connections=4", "--requests=64", "--destination-is-zero", "--flush"],
    "qemu-img": ["qemu-img", "convert", "-n", "-W", "-m8", "--target-is-zero", "-f", "raw", "-O", "raw"],
}


def run_once(copier: str, image: Path) -> Figures:
    """Copy ``image``; ``copier`` is one of OTHERS, or "whimbrel", or "whimbrel LANES:REQUEST_KIB:WINDOW_MIB"."""
    where = image.parent
    target, manifest = where / "target.raw", where / "manifest"
    manifest.unlink(missing_ok=True)
    empty(target, image.stat().st_size)
    with served(image, where / "s", writable=False) as source, served(target, where / "t", writable=True) as sink:
        before = source.cpu_s() + sink.cpu_s()
        if copier in OTHERS:
            figures = _timed([*OTHERS[copier], source.uri, sink.uri])
        else:
            command = [sys.executable, "-m", "tests.bench.copiers", str(source.socket), str(sink.socket)]
            command += [str(manifest), *copier.split(" ")[1:]]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        figures["total_cpu_s"] = figures["cpu_s"] + source.cpu_s() + sink.cpu_s() - before
    if differ(image, target):
        raise RuntimeError(f"{copier} made a copy that differs")
    if manifest.exists():
        figures["manifest_kib"] = manifest.stat().st_blocks / 2
    target.unlink()
    return figures


def _timed(command: list[str]) -> Figures:
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"elapsed_s": time.monotonic() - started, "cpu_s": cpu_s}


def _peak_rss_mib() -> float:
    """Of this process alone: ru_maxrss would begin with the parent's figure."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _child(source: str, target: str, manifest: str, variant: str = "") -> None:
    """Our copier in a process of its own, as the others have; figures as JSON on standard output.

    The start of the interpreter and its imports are not counted, as a worker runs already; connecting, all digests,
    the manifest and the last flush are.
    """
    import whimbrel.nbd  # noqa: F401 - open_device would import it within the measured time
    from whimbrel.dataplane import CopySettings, Manifest, copy, open_device
    from whimbrel.model.endpoint import NbdEndpoint

    settings = CopySettings()
    if variant:
        lanes, request_kib, window_mib = (int(part) for part in variant.split(":"))
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
        "rss_mib": _peak_rss_mib(),
        "sent_mib": result.sent_bytes / MIB,
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    _child(*sys.argv[1:])
