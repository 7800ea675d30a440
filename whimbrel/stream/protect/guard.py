"""The protection of one server: opened as its configuration says, or none."""

from __future__ import annotations

from pathlib import Path

from whimbrel.errors import InvalidPlan, Unavailable
from whimbrel.stream.chunkmap import ChunkMap
from whimbrel.stream.protect.config import ProtectConfig
from whimbrel.stream.protect.intent import open_intent
from whimbrel.stream.protect.journal import leave_journal, open_journal
from whimbrel.stream.protect.journaled import Journaled
from whimbrel.stream.protect.mirror import Mirror
from whimbrel.stream.protect.shadow import Shadow, ShadowEndpoint, opener_of
from whimbrel.stream.store import Store

Guard = Mirror | Journaled


def open_protection(
    config: ProtectConfig, store: Store, chunkmap: ChunkMap, stem: Path, *, timeout_s: float
) -> Guard | None:
    """Made around a store that nobody uses yet; None with mode ``none``. ``start`` it.

    Raises Conflict (protection must begin with the stream, or the files are damaged), Unavailable.
    """
    path = Path(f"{stem}.intent")
    if config.shadow is None:
        # What is written from now on is not in the shadow, and nobody may believe later that it is.
        path.unlink(missing_ok=True)
        return None
    shadow = Shadow(opener_of(config.shadow, timeout_s), store.size_bytes)
    journal_path = Path(config.journal_path or f"{stem}.journal")
    untouched = not chunkmap.written_chunks
    try:
        if config.mode == "mirror":
            leave_journal(journal_path, chunkmap.header)
        intent = open_intent(path, chunkmap.header, untouched=untouched)
        if config.mode == "mirror":
            return Mirror(store, intent, shadow)
        try:
            journal = open_journal(journal_path, chunkmap.header, untouched=untouched, host_crashed=intent.host_crashed)
        except BaseException:
            intent.close()
            raise
    except OSError as failed:
        raise Unavailable(f"the files of protection beside {path} cannot be used: {failed}", cause=failed) from failed
    return Journaled(store, intent, shadow, journal, max_lag_bytes=config.max_lag_bytes, max_lag_s=config.max_lag_s)


def report(protection: Guard | None) -> dict[str, object]:
    """The key ``protect`` of the status."""
    if protection is None:
        return {"mode": "none"}
    shadow = protection.shadow
    away, error = shadow.away_s, shadow.error
    return {
        "mode": protection.mode,
        "shadow_error": None if error is None else f"{error.code}: {error.message}",
        "away_s": None if away is None else round(away, 3),
        "reconnects": max(shadow.reconnects, 0),
        "flushes": shadow.flushes,
        **protection.report(),
    }


def move_shadow(protection: Guard | None, endpoint: ShadowEndpoint, *, timeout_s: float) -> None:
    """The same shadow is served elsewhere from now on. Raises InvalidPlan if nothing is protected."""
    if protection is None:
        raise InvalidPlan("this stream has no shadow")
    protection.shadow.use(opener_of(endpoint, timeout_s))
