"""Activity that holds the ledger against what the clouds really have."""

from __future__ import annotations

from datetime import UTC, datetime

from temporalio import activity

from whimbrel.contracts.activity_io import ReadBackInput, ReadBackResult
from whimbrel.errors import NotFound
from whimbrel.model.ledger import Fate, LedgerEntry
from whimbrel.model.naming import shadow_key
from whimbrel.ports.cloud import Cloud, CloudRegistry


def _points(cloud: Cloud, ref: str | None, migration: str) -> set[str]:
    if ref is None:
        return set()
    try:
        return set(cloud.points.owned(ref, migration))
    except NotFound:
        return set()


def _fenced(cloud: Cloud, wanted: ReadBackInput) -> list[str]:
    """The source, if this migration still keeps it from being started."""
    try:
        fenced = wanted.source_ref is not None and cloud.compute.fenced(wanted.source_ref) == wanted.migration
    except NotFound:
        return []
    return [entry.name for entry in wanted.entries if entry.kind == "fence" and fenced]


def _found(cloud: Cloud, ref: str | None, wanted: ReadBackInput) -> set[tuple[str, str, str]]:
    """Cloud, kind and name of everything of the migration that is there."""
    name = cloud.name
    found = {(name, "volume", volume) for volume in cloud.volumes.owned(wanted.migration)}
    found |= {(name, "vm", vm) for vm in cloud.compute.owned(wanted.migration)}
    if cloud.handover is not None:
        found |= {(name, "release", vm) for vm in cloud.handover.released(wanted.migration)}
    if any(entry.kind == "fence" and entry.cloud == name for entry in wanted.entries):
        found |= {(name, "fence", vm) for vm in _fenced(cloud, wanted)}
    if name == wanted.source and wanted.vm is not None:
        shadows = {(name, "shadow", overlay) for overlay in cloud.shadows.owned(wanted.vm, wanted.migration)}
        # A driver may know the overlays as volumes too.
        found -= {(name, "volume", overlay) for _, _, overlay in shadows}
        found |= shadows
    if wanted.points:
        found |= {(name, "point", point) for point in _points(cloud, ref, wanted.migration)}
    return found


class LedgerActivities:
    """Reading objects back."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="ledger.read_back", no_thread_cancel_exception=True)
    def read_back(self, wanted: ReadBackInput) -> ReadBackResult:
        """Look for every object of the migration on both clouds; report those that are there and should not be."""
        found: set[tuple[str, str, str]] = set()
        for name, ref in ((wanted.source, wanted.source_ref), (wanted.target, wanted.target_ref)):
            cloud = self._clouds.get(name)
            with cloud.one_look():
                found |= _found(cloud, ref, wanted)
        now = datetime.now(UTC)
        # The ledger names the session that serves the overlays.
        there = found | {(cloud, kind, shadow_key(wanted.migration)) for cloud, kind, _ in found if kind == "shadow"}
        entries: list[LedgerEntry] = []
        meant_to_stay: set[tuple[str, str, str]] = set()
        for entry in wanted.entries:
            key = (entry.cloud, entry.kind, entry.name)
            if entry.fate is Fate.KEPT:
                meant_to_stay.add(key)
                entries.append(entry)
            else:
                fate = entry.fate if key in there else Fate.GONE
                entries.append(entry.model_copy(update={"fate": fate, "noted_at": now}))
        leftovers = sorted(found - meant_to_stay)
        return ReadBackResult(
            entries=tuple(entries), leftovers=tuple(f"{kind} {name} on {cloud}" for cloud, kind, name in leftovers)
        )
