"""A guest's change on its way into the target."""

from __future__ import annotations

import logging
from dataclasses import replace

from whimbrel.errors import WhimbrelError
from whimbrel.stream.protect.change import Change
from whimbrel.stream.store import Store

log = logging.getLogger(__name__)


def made_exact(store: Store, change: Change) -> Change:
    """What will really be changed, so that both sides do the same: a trim becomes zeros, and leaves some out."""
    if change.kind != "trim":
        return change
    offset, length = store.trimmable(change.offset, change.length)
    return replace(change, kind="zero", offset=offset, length=length, may_punch=True)


def land(store: Store, change: Change) -> WhimbrelError | None:
    """Change the target; the error if it failed.

    A write that failed may have been made in part, so the shadow gets it all the same: the guest knows that the place
    holds anything now.
    """
    try:
        if change.data is not None:
            store.write(change.offset, change.data)
        elif change.length:
            store.zero(change.offset, change.length, may_punch=change.may_punch)
    except WhimbrelError as error:
        log.warning("change.failed", extra={"offset": change.offset, "error": str(error)})
        return error
    return None
