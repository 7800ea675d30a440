"""After the boot: the rest of the data arrives, is compared, and the guest is put on its own disks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Literal, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.workflow import ActivityHandle

from activities.imports import ImportActivities
from activities.point import PointActivities
from activities.serving import ServingActivities
from activities.shadow import ShadowActivities
from activities.stream import StreamActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import ClosePointInput, VmInput
from whimbrel.contracts.stream_io import (
    HydrateInput,
    HydrateResult,
    ProveInput,
    StopStreamInput,
    StreamInput,
    SwitchInput,
)
from whimbrel.contracts.timeouts import DRAIN
from whimbrel.errors import DataMismatch
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import shadow_key
from whimbrel.model.point import DiskPoint
from whimbrel.model.progress import Phase, VerifyRecord
from workflows.calls import call, raise_if_cancelled, start
from workflows.closing import commit, confirm
from workflows.copying import REOPEN_FIRST_S, REOPEN_MAX_S, RETRYABLE, open_point
from workflows.course import Course
from workflows.keeping_writes import stop_target as stop_vm
from workflows.taking_over import import_input, open_shadow, serve, shadow_input
from workflows.verifying import compare_all

T = TypeVar("T")
GUEST_WAITS_S = 30.0
"""The longest pause between two tries to open a source that a running guest waits for."""
CALM = timedelta(seconds=60)
"""After so long without a loss the next one is not a try that failed."""


async def hydrate(course: Course) -> None:
    """Until every byte is at the target. A source that went away is opened again, for as long as it takes."""
    journal = course.journal
    journal.enter(Phase.HYDRATE)
    await course.step("hydrate", lambda: _hydrate(course))
    if journal.imports:
        # All is on the mover now: the storage takes it from there as fast as it can, and the guest's misses are short.
        await course.step("import", lambda: _import(course))
    journal.hydrated_at = workflow.now()


async def bring_home(course: Course) -> None:
    """Return when all that the target has acknowledged is in the shadows; one that has died is opened again.

    Also when the operator gives the writes up meanwhile.
    """
    await _until_answered(course, "rollback", _drain, unless=lambda: course.wishes.drop_writes)


async def let_shadow_go(course: Course) -> None:
    """Return when the target's writes need no shadow any more: what happens to it then is nothing to the guest."""
    await _until_answered(course, "commit", _let_go)


async def _drain(course: Course) -> None:
    await call(
        StreamActivities.drain, _servers(course), summary="bring the last writes to the source",
        queue=course.data_queue, timing=DRAIN,
    )  # fmt: skip


async def _let_go(course: Course) -> None:
    await call(
        StreamActivities.let_go, _servers(course), summary="the target's writes need the source no more",
        queue=course.data_queue,
    )  # fmt: skip


def _servers(course: Course) -> StreamInput:
    journal = course.journal
    return StreamInput(migration=journal.migration, disks=tuple(disk.spec.key for disk in journal.disks))


async def _until_answered(
    course: Course, step: str, ask: Callable[[Course], Awaitable[None]], *, unless: Callable[[], bool] = lambda: False
) -> None:
    """Ask the servers for something that may need the shadows; those that have died are opened again."""
    journal = course.journal
    wait_s = REOPEN_FIRST_S
    while not unless():
        try:
            await ask(course)
        except ActivityError as error:
            found = failure.read(error)
            if failure.is_cancel(error) or found.code not in RETRYABLE:
                raise
            journal.trouble = course.trouble(step, found, journal.phase)
            course.show()
            await workflow.sleep(timedelta(seconds=wait_s), summary=f"{found.code}: the shadow is opened again")
            wait_s = min(wait_s * 2, REOPEN_MAX_S)
            await open_again(course)
            continue
        journal.trouble = None
        return


async def confirm_served(course: Course) -> Literal["commit", "rollback"]:
    """The confirm gate of a guest that is served until then: whoever serves it is watched on."""
    watching = asyncio.create_task(_keep_served(course))
    try:
        return await confirm(course)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _keep_served(course: Course) -> None:
    journal = course.journal
    while True:
        try:
            await _hydrate(course, keep=True)
        except FailureError as error:
            if failure.is_cancel(error):
                raise
            # The gate stays open: a commit or a rollback may be what helps.
            journal.trouble = course.trouble("hydrate", failure.read(error), journal.phase)
            course.show()
            await workflow.sleep(timedelta(seconds=REOPEN_MAX_S), summary="who serves the guest is watched again")


def pause_s(last_s: float, well: timedelta) -> float:
    """How long to wait before an end is opened again for a running guest, after ``well`` without a loss.

    ``last_s``: the pause before, 0 if there was none.
    """
    return REOPEN_FIRST_S if not last_s or well > CALM else min(last_s * 2, GUEST_WAITS_S)


async def _hydrate(course: Course, *, keep: bool = False) -> None:
    journal = course.journal
    wait_s = 0.0
    while True:
        began = workflow.now()
        try:
            result = await _watch(course, keep=keep)
        except ActivityError as error:
            found = failure.read(error)
            if found.code not in RETRYABLE or course.from_copy:
                raise
            # The guest waits for its data; both ends are opened anew by themselves, and the operator sees why.
            journal.trouble = course.trouble("hydrate", found, journal.phase)
            course.show()
            wait_s = pause_s(wait_s, workflow.now() - began)
            await workflow.sleep(timedelta(seconds=wait_s), summary=f"{found.code}: the source is opened again")
            await open_again(course)
            if keep:
                journal.trouble = None
            continue
        if result is None:
            continue
        journal.trouble = None
        journal.stream = result.figures
        journal.stream_slow = False
        return


async def _import(course: Course) -> None:
    """Until the target's storage has every byte, and asks the servers for nothing any more."""
    wait_s = REOPEN_FIRST_S
    while True:
        await course.unpaused()
        handle = start(
            ImportActivities.fill, import_input(course), summary="import into the target's storage",
            queue=course.data_queue,
        )  # fmt: skip
        try:
            if await _unless_told(course, handle) is None:
                continue
        except ActivityError as error:
            found = failure.read(error)
            if found.code not in RETRYABLE:
                raise
            course.journal.trouble = course.trouble("import", found, Phase.HYDRATE)
            course.show()
            await workflow.sleep(timedelta(seconds=wait_s), summary=f"{found.code}: it goes on where it was")
            wait_s = min(wait_s * 2, REOPEN_MAX_S)
            continue
        course.journal.trouble = None
        return


async def _watch(course: Course, *, keep: bool) -> HydrateResult | None:
    """One hydration activity; None when it was stopped because the operator wants other settings.

    With ``keep`` it goes on when all has arrived, until it is cancelled.
    """
    journal, wishes = course.journal, course.wishes
    paused = wishes.paused
    job = HydrateInput(
        migration=journal.migration,
        disks=tuple(disk.spec.key for disk in journal.disks),
        policy=course.plan.stream,
        cloud=course.plan.target,
        ref=journal.target_ref or "",
        background=not paused,
        keep=keep,
        bandwidth_bytes_per_s=wishes.bandwidth_bytes_per_s,
    )
    handle = start(
        StreamActivities.hydrate,
        job,
        summary=_summary(keep=keep, paused=paused),
        queue=course.data_queue,
    )
    return await _unless_told(course, handle)


async def _unless_told(course: Course, handle: ActivityHandle[T]) -> T | None:
    """The activity's result; None when it was stopped because the operator wants other settings."""
    wishes = course.wishes
    generation, paused = wishes.copy_generation, wishes.paused
    try:
        await workflow.wait_condition(
            lambda: handle.done() or wishes.copy_generation != generation or wishes.paused != paused
        )
        if not handle.done():
            handle.cancel()
        result = await handle
        raise_if_cancelled()
        return result
    except asyncio.CancelledError:
        if not handle.done():
            handle.cancel()
        await asyncio.gather(handle, return_exceptions=True)
        raise
    except ActivityError as error:
        raise_if_cancelled()
        if failure.is_cancel(error) and (wishes.copy_generation != generation or wishes.paused != paused):
            return None
        raise


def _summary(*, keep: bool, paused: bool) -> str:
    if keep:
        return "watch who serves the guest"
    return "fetch on demand only (paused)" if paused else "fetch the rest in the background"


async def open_again(course: Course) -> None:
    """Find the point and the shadow, or open them anew: the source is off, so its disks hold the same bytes."""
    journal = course.journal
    assert journal.source_point is not None
    # Without ``since``: what is missing is known by the servers' maps.
    journal.source_point, _ = await open_point(course, journal.source_point.key, journal.source_point.since)
    if journal.shadow is not None:
        await open_shadow(course)
    await serve(course)


async def prove(course: Course) -> None:
    """Compare every chunk that the guest never wrote with the source. Raises ApplicationError (DataMismatch).

    Where the target's storage imported, its first state is compared, whole: what the guest wrote is not in it.
    """
    journal = course.journal
    journal.enter(Phase.VERIFY)
    assert journal.source_point is not None
    if journal.imports:
        await _prove_first_state(course)
        return

    async def one(disk: DiskPoint) -> VerifyRecord:
        job = ProveInput(
            migration=journal.migration,
            disk=disk.key,
            source=disk,
            limit_bytes_per_s=course.wishes.bandwidth_bytes_per_s,
        )
        made = await call(
            StreamActivities.prove, job, summary=f"compare {disk.key} where the guest never wrote",
            queue=course.data_queue,
        )  # fmt: skip
        return made.record

    tasks = [asyncio.create_task(one(disk)) for disk in journal.source_point.disks]
    try:
        journal.verify = tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    wrong = [record for record in journal.verify if record.mismatches]
    if wrong:
        told = "; ".join(f"{r.disk}: {r.mismatches} chunks, first at {r.first_mismatches[:4]}" for r in wrong)
        raise ApplicationError(
            f"source and target differ where the guest never wrote: {told}",
            {"action": "roll back: the source is intact"},
            type=DataMismatch.__name__,
            non_retryable=True,
        )


async def _prove_first_state(course: Course) -> None:
    journal, plan = course.journal, course.plan
    assert journal.source_point is not None
    assert journal.target_ref is not None
    if journal.target_point is None:
        return  # compared, and closed, by an earlier attempt of the step
    await compare_all(course, journal.source_point.disks, journal.target_point.disks, mode="full")
    wanted = ClosePointInput(
        cloud=plan.target, ref=journal.target_ref, key=journal.target_point.key, migration=journal.migration
    )
    # Its token stays until confirm: a rollback begins there.
    await call(PointActivities.close, wanted, summary="close the target's first state")
    journal.target_point = None


async def switch(course: Course) -> None:
    """Put the running guest on its own disks, then end the servers: from here on it needs nobody."""
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    disks = tuple(disk.model_copy(update={"served": None}) for disk in journal.disks)
    await call(
        ServingActivities.switch_disks,
        SwitchInput(cloud=plan.target, migration=journal.migration, ref=journal.target_ref, disks=disks),
        summary="put the guest on its own disks",
    )
    journal.disks = disks
    journal.switched_at = workflow.now()
    await end_servers(course)


async def end_servers(course: Course, *, trace: bool = False) -> None:
    """End the servers and remove their files; their figures are kept."""
    journal, plan = course.journal, course.plan
    keys = tuple(disk.spec.key for disk in journal.disks)
    wanted = StopStreamInput(
        migration=journal.migration,
        disks=keys,
        keep_trace_of=f"{plan.source}/{journal.vm.ref}" if trace else None,
    )
    await call(StreamActivities.stop, wanted, summary="end the streaming servers", queue=course.data_queue)
    for key in keys:
        journal.note(plan.target, "stream", f"{journal.migration}/{key}", Fate.GONE)


async def stop_target(course: Course) -> None:
    """Take the target down, its guest asked first."""
    journal, plan = course.journal, course.plan
    assert journal.target_ref is not None
    await stop_vm(course, VmInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration))


async def commit_stream(course: Course) -> None:
    """Hand over. A protected guest was served until now, for its writes to reach the source; it is switched first."""
    journal = course.journal
    journal.confirmed = True
    journal.enter(Phase.COMMIT)
    if journal.switched_at is None:
        if journal.shadow is not None and workflow.patched("let-shadow-go"):
            # The switch waits for writes that are on their way, and these for a shadow that may just have died.
            await course.step("let the shadow go", lambda: let_shadow_go(course))
        await course.step("hot switch", lambda: switch(course))
    if journal.shadow is not None:
        await course.step("drop the shadow", lambda: _drop_shadow(course))
    await commit(course)


async def _drop_shadow(course: Course) -> None:
    journal = course.journal
    await call(ShadowActivities.drop, shadow_input(course), summary="give the copies of the target's writes up")
    journal.shadow = None
    journal.note(course.plan.source, "shadow", shadow_key(journal.migration), Fate.GONE, owner=journal.vm.ref)
