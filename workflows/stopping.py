"""Stopping the source for certain, and keeping its owner from starting it."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from activities.compute import ComputeActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import (
    AutostartInput,
    FenceInput,
    VmInput,
)
from whimbrel.contracts.migration import UndoStep
from whimbrel.contracts.timeouts import CUTOVER
from whimbrel.errors import PreconditionFailed
from whimbrel.model.ledger import Fate
from whimbrel.model.progress import Outage
from whimbrel.model.vm import Power
from workflows.calls import call
from workflows.course import Course


async def stop_source(course: Course) -> None:
    """Ask the guest, then do as the plan says; the state is read back, never assumed."""
    await take_down(course)
    await keep_off(course)


async def take_down(course: Course) -> None:
    """Stop the source as the plan says; a fence is asked for with the stop, and proved by ``keep_off``."""
    journal, plan = course.journal, course.plan
    vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
    journal.push(UndoStep(kind="restore-source"))
    journal.source_stopped = True
    journal.outage = Outage(stop_requested_at=workflow.now())
    if journal.vm.autostart:
        await call(
            ComputeActivities.set_autostart,
            AutostartInput(cloud=plan.source, ref=journal.vm.ref, enabled=False),
            summary="fence the source: no start with its host",
        )
    now = await call(ComputeActivities.power, vm, summary="read the power state", timing=CUTOVER)
    power = now.power
    journal.outage = Outage(stop_requested_at=workflow.now())
    # A crashed guest may still have a hypervisor process that holds its disks.
    if power is not Power.OFF:
        stopped = False
        if plan.stop.graceful_timeout_s > 0 and power is Power.RUNNING:
            await call(ComputeActivities.request_stop, vm, summary="ask the guest to shut down")
            if now.fences:
                # before it is off: somebody who starts it again and again would be quicker then
                journal.note(plan.source, "fence", journal.vm.name, Fate.INTENDED)
                await fence(vm, stopping=True, summary="fence the source while it stops")
            stopped = await _off_within(course, vm, plan.stop.graceful_timeout_s)
        if not stopped:
            if plan.stop.then == "hold" and power is Power.RUNNING:
                raise ApplicationError(
                    f"the guest did not shut down within {plan.stop.graceful_timeout_s:.0f} s",
                    {"action": "shut it down from inside, or set stop.then: force in the plan; then cutover again"},
                    type=PreconditionFailed.__name__,
                    non_retryable=True,
                )
            await call(ComputeActivities.force_off, vm, summary="take the power away")
            await call(
                ComputeActivities.wait_off, vm, summary="confirm that it is off", schedule_to_close=timedelta(minutes=2)
            )
    if now.fences:
        journal.note(plan.source, "fence", journal.vm.name, Fate.INTENDED)
    journal.outage = journal.outage.model_copy(update={"stopped_at": workflow.now()})


async def keep_off(course: Course) -> None:
    """The fence of the stopped source, where its cloud has one. Raises ActivityError (Conflict) when it is on again."""
    journal, plan = course.journal, course.plan
    if not any(entry.kind == "fence" for entry in journal.ledger.open_entries()):
        return
    vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
    await fence(vm, stopping=False, summary="fence the source: no start by its owner")
    journal.note(plan.source, "fence", journal.vm.name, Fate.CREATED)


async def fence(vm: VmInput, *, stopping: bool, summary: str) -> None:
    """Keep the VM's owner from starting it. Raises ActivityError (Conflict) when it is on and was not asked to stop."""
    wanted = FenceInput(cloud=vm.cloud, ref=vm.ref, migration=vm.migration, stopping=stopping)
    await call(ComputeActivities.fence, wanted, summary=summary)


async def remove_fence(course: Course) -> None:
    """The source is its owner's again, as far as it was kept from being started."""
    journal, plan = course.journal, course.plan
    fences = [entry for entry in journal.ledger.open_entries() if entry.kind == "fence"]
    for entry in fences:
        vm = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
        await call(ComputeActivities.unfence, vm, summary="take the fence from the source")
        journal.note(entry.cloud, entry.kind, entry.name, Fate.GONE)


async def _off_within(course: Course, vm: VmInput, timeout_s: float) -> bool:
    try:
        await call(
            ComputeActivities.wait_off,
            vm,
            summary="wait until the guest is off",
            schedule_to_close=timedelta(seconds=timeout_s),
        )
    except ActivityError as error:
        if failure.is_cancel(error):
            raise
        return False
    return True
