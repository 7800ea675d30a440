"""Traces by hand: ``python -m whimbrel.stream.prefetch record|inspect|convert|replay``, see ``--help`` of each."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

from whimbrel.errors import WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint
from whimbrel.nbd import open_nbd
from whimbrel.stream.chunkmap import CHUNK_BYTES
from whimbrel.stream.prefetch.convert import from_qemu_log
from whimbrel.stream.prefetch.record import pass_through
from whimbrel.stream.prefetch.replay import replay
from whimbrel.stream.prefetch.summary import summary
from whimbrel.stream.prefetch.trace import TraceHeader, read_trace, write_trace


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        result = {"record": _record, "inspect": _inspect, "convert": _convert, "replay": _replay}[options.verb](options)
    except WhimbrelError as error:
        sys.stderr.write(f"{error.code}: {error}\n{error.action}\n")
        return 1
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m whimbrel.stream.prefetch", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser("record", help="serve a raw disk in place and record it, until SIGINT or SIGTERM")
    record.add_argument("disk", type=Path)
    record.add_argument("trace", type=Path)
    record.add_argument("--socket", type=Path, required=True, help="unix socket to serve at")
    record.add_argument("--identity", default="", help="what the trace is of")
    inspect = verbs.add_parser("inspect", help="what is in a trace")
    inspect.add_argument("trace", type=Path)
    convert = verbs.add_parser("convert", help="make a trace from QEMU's log of blk_co_preadv and blk_co_pwritev")
    convert.add_argument("log", type=Path)
    convert.add_argument("trace", type=Path)
    convert.add_argument("--size-bytes", type=int, required=True, help="of the disk")
    convert.add_argument("--blk", help="the disk's pointer in the log, if there are several")
    convert.add_argument("--identity", default="converted")
    play = verbs.add_parser("replay", help="play a trace against an NBD server; WRITES where the trace writes")
    play.add_argument("trace", type=Path)
    play.add_argument("--socket", required=True, help="unix socket of the server")
    play.add_argument("--export", default="")
    play.add_argument("--speed", type=float, default=1.0, help="pauses are divided by this")
    return parser


def _record(options: argparse.Namespace) -> dict[str, object]:
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with tempfile.TemporaryDirectory(prefix="whimbrel-record-") as state:
        server = pass_through(options.disk, options.socket, options.trace, Path(state), identity=options.identity)
        while not ending.wait(1.0):
            pass
        server.stop()
    return summary(read_trace(options.trace))


def _inspect(options: argparse.Namespace) -> dict[str, object]:
    return summary(read_trace(options.trace))


def _convert(options: argparse.Namespace) -> dict[str, object]:
    with options.log.open(encoding="utf-8", errors="replace") as lines:
        records = from_qemu_log(lines, options.size_bytes, blk=options.blk)
    header = TraceHeader(options.size_bytes, CHUNK_BYTES, options.identity)
    write_trace(options.trace, header, [records])
    return summary(read_trace(options.trace))


def _replay(options: argparse.Namespace) -> dict[str, object]:
    trace = read_trace(options.trace)
    endpoint = NbdEndpoint(unix_path=options.socket, export=options.export, writable=True)
    device = open_nbd(endpoint)
    try:
        played = replay(device, trace.records, speed=options.speed)
    finally:
        device.close()
    took = sorted(played.read_s)
    return {
        "reads": len(took),
        "elapsed_s": round(played.elapsed_s, 3),
        "paused_s": round(played.paused_s, 3),
        "read_ms": {f"p{share}": round(took[len(took) * share // 100] * 1000, 3) for share in (50, 95, 99) if took},
    }
