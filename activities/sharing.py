"""Whether two clouds see one storage: a note written by one is read by the other, and both see the same images."""

from __future__ import annotations

import secrets
from contextlib import suppress

from whimbrel.errors import Unsupported, WhimbrelError
from whimbrel.model.facts import HandoverFacts
from whimbrel.model.handover import StoredDisk
from whimbrel.model.naming import marker_name
from whimbrel.model.plan import VmPlan
from whimbrel.model.vm import Power, VmSpec
from whimbrel.ports.cloud import Cloud
from whimbrel.ports.handover import HandoverPort


def _mapped(plan: VmPlan, disks: list[StoredDisk]) -> tuple[dict[str, str], list[str]]:
    """(source pool -> target pool, images in a pool that is not known or not mapped)."""
    pools: dict[str, str] = {}
    outside = []
    for disk in disks:
        for image in disk.images:
            target = plan.pool_for(image.pool) if image.pool is not None else None
            if image.pool is None or target is None:
                outside.append(f"{disk.spec.key}: {image.handle} in {image.pool or 'no pool'}")
            else:
                pools[image.pool] = target
    return pools, outside


def _same_storage(source: HandoverPort, target: HandoverPort, pools: dict[str, str], migration: str) -> list[str]:
    """Pool pairs that are not one storage, in words; [] when each note was read by the other side."""
    name, wrong = marker_name(migration), []
    for here, there in sorted(pools.items()):
        text = f"{migration} {secrets.token_hex(16)}"
        try:
            source.write_marker(here, name, text)
            if target.read_marker(there, name) != text:
                wrong.append(f"{here} and {there}")
        except Unsupported:
            continue  # no place for a note: the images' own identities have to agree
        finally:
            with suppress(Unsupported):
                source.remove_marker(here, name)
    return wrong


def handover_facts(
    plan: VmPlan, source: Cloud, target: Cloud, vm: VmSpec | None, *, migration: str, probe: bool, patient: bool
) -> HandoverFacts:
    """What the rules of mode dual-attach judge; with ``probe`` a note is written to the storage and removed.

    What fails is told in ``why_not``; with ``patient`` what may pass by itself is raised, so that it is tried again.
    """
    here, there = source.handover, target.handover
    if here is None or there is None or vm is None:
        return HandoverFacts()
    try:
        disks = list(here.stored(vm))
        pools, outside = _mapped(plan, disks)
        seen = [disk for disk in disks if all(image.pool in pools for image in disk.images)]
        apart = _same_storage(here, there, pools, migration) if probe else []
        unlike = []
        for disk in seen if not apart else ():
            try:
                there.look([disk], pools)
            except WhimbrelError as error:
                if error.retryable:
                    raise
                unlike.append(f"{disk.spec.key}: {error.message}")
        clear = seen if not apart and not unlike else []
        off = vm.power is Power.OFF
        openers = {
            *here.openers(disks, {}, migration=migration, locks=off),
            *there.openers(clear, pools, migration=migration, locks=off),
        }
        held = here.held(vm.ref)
        return HandoverFacts(
            looked=True,
            marked=probe,
            apart=tuple(apart),
            outside=tuple(outside),
            unlike=tuple(unlike),
            openers=tuple(sorted(openers - ({f"VM {vm.name}"} if not off else set()))),
            users=tuple(there.users(clear, pools)),
            taken=held.migration if held is not None else "",
        )
    except WhimbrelError as error:
        if patient and error.retryable:
            raise
        return HandoverFacts(why_not=error.message)
