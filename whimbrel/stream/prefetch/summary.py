"""What a trace holds, in a few figures."""

from __future__ import annotations

from whimbrel.stream.prefetch.history import first_uses
from whimbrel.stream.prefetch.trace import Trace


def summary(trace: Trace) -> dict[str, object]:
    """For JSON. ``sequential_share``: of the reads, those that begin where the read before ended."""
    chunk_bytes = trace.header.chunk_bytes
    counts = {"read": 0, "write": 0, "trim": 0}
    bytes_of = dict.fromkeys(counts, 0)
    chunks: set[int] = set()
    sequential, end, span_s = 0, -1, 0.0
    for record in trace.records:
        counts[record.access] += 1
        bytes_of[record.access] += record.length
        span_s = record.at_s
        if record.access == "read":
            sequential += record.offset == end
            end = record.offset + record.length
            chunks.update(range(record.offset // chunk_bytes, -(-end // chunk_bytes)))
    needed = len(first_uses(trace, chunk_bytes))
    return {
        "identity": trace.header.identity,
        "size_bytes": trace.header.size_bytes,
        "chunk_bytes": chunk_bytes,
        "recorded_at_s": trace.header.wall_time_s,
        "segments": len(trace.segments),
        "full": trace.full,
        "lost": trace.lost,
        "torn": trace.torn,
        "requests": counts,
        "bytes": bytes_of,
        "span_s": round(span_s, 3),
        "chunks_read": len(chunks),
        "chunks_needed": needed,
        "needed_bytes": needed * chunk_bytes,
        "sequential_share": round(sequential / counts["read"], 4) if counts["read"] else None,
    }
