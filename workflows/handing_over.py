"""The steps of a handover: the source's disks are released there and adopted here, and no byte is copied.

At every moment one side only can open the disks. What fails before the target has passed its checks is taken back
(``Retreated``): the source gets its very volumes, with all that was written to them.
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.compute import ComputeActivities
from activities.handover import HandoverActivities
from whimbrel.contracts import failure
from whimbrel.contracts.activity_io import VmInput
from whimbrel.contracts.handover_io import DefineInput, SameVolumesInput
from whimbrel.contracts.migration import UndoStep
from whimbrel.model.finding import Finding
from whimbrel.model.ledger import Fate
from whimbrel.model.progress import Phase
from whimbrel.model.vm import Power
from workflows.calls import call
from workflows.closing import check_health
from workflows.course import Course
from workflows.cutover import Retreated, last_precheck, retreat
from workflows.defining import start_target
from workflows.opening import look, mapped_nics, mapped_pool, precheck, target_vm
from workflows.stopping import remove_fence, stop_source
from workflows.undo import handover_input


async def precheck_sharing(course: Course) -> tuple[Finding, ...]:
    """The precheck, which leaves a note on the storage for a moment; the blocking findings."""
    note = UndoStep(kind="remove-markers")
    course.journal.push(note)
    blocking = await precheck(course)
    course.journal.undo.remove(note)
    return blocking


async def find_disks(course: Course) -> None:
    """Read the source, and find its disks on the storage of both."""
    journal = course.journal
    journal.enter(Phase.PREPARE)

    async def work() -> None:
        spec = await look(course)
        mapped_nics(course)
        for disk in spec.disks:
            mapped_pool(course, disk)
        wanted = handover_input(course).model_copy(update={"pools": {**_pools(course)}})
        found = await call(HandoverActivities.look, wanted, summary=f"find {len(spec.disks)} disks from both sides")
        journal.stored = found.disks

    await course.step("prepare", work)


def _pools(course: Course) -> dict[str, str]:
    """The plan's pools by name, and those that its ``*`` stands for as far as disks lie in them."""
    named = {source: target for source, target in course.plan.storage.items() if source != "*"}
    return named | {disk.pool: mapped_pool(course, disk) for disk in course.journal.vm.disks if disk.pool is not None}


def moves_running(course: Course) -> bool:
    """Whether the target is started: a VM that was off is handed over off."""
    return course.journal.vm.power is not Power.OFF


async def hand_over(course: Course) -> None:
    """Stop, release, adopt, rebuild, start. Raises Retreated when the source was given its volumes back."""
    journal = course.journal
    mark = len(journal.undo)
    journal.trouble = None
    journal.enter(Phase.CUTOVER)
    try:
        await course.step("last precheck", lambda: last_precheck(course), hold=False)
        await course.step("stop the source", lambda: stop_source(course), hold=False)
        await course.step("release the disks", lambda: _release(course), hold=False)
        await course.step("adopt the disks", lambda: _adopt(course), hold=False)
        journal.enter(Phase.REBUILD)
        await course.step("rebuild the VM", lambda: _define(course), hold=False)
        if moves_running(course):
            await course.step("start the target", lambda: _start(course), hold=False)
        else:
            journal.outage = None
    except FailureError as error:
        if failure.is_cancel(error):
            raise
        found = failure.read(error)
        await retreat(course, mark, found)
        raise Retreated(found) from error


async def _release(course: Course) -> None:
    journal, plan = course.journal, course.plan
    journal.turn += 1
    journal.push(UndoStep(kind="reclaim-source", detail=str(journal.turn)))
    journal.note(plan.source, "release", journal.vm.name, Fate.INTENDED)
    released = await call(
        HandoverActivities.release, handover_input(course), summary=f"take the disks from {journal.vm.name}"
    )
    journal.stored = released.disks
    journal.note(plan.source, "release", journal.vm.name, Fate.CREATED)


async def _adopt(course: Course) -> None:
    journal = course.journal
    journal.push(UndoStep(kind="abandon-disks"))
    adopted = await call(
        HandoverActivities.adopt, handover_input(course), summary="open nowhere: take the disks over as they are"
    )
    journal.disks = adopted.disks
    assert journal.outage is not None
    journal.outage = journal.outage.model_copy(update={"final_delta_done_at": workflow.now()})


async def _define(course: Course) -> None:
    journal, plan = course.journal, course.plan
    name = plan.target_name or journal.vm.name
    journal.push(UndoStep(kind="remove-target-vm", detail=name))
    journal.note(plan.target, "vm", name, Fate.INTENDED)
    target = target_vm(course, name)
    wanted = DefineInput(handover=handover_input(course), vm=target)
    made = await call(HandoverActivities.define, wanted, summary=f"define {name}")
    journal.note(plan.target, "vm", name, Fate.CREATED)
    journal.target_ref, journal.capabilities, journal.console_mark = made.vm.ref, made.capabilities, made.console_mark


async def _start(course: Course) -> None:
    """Nothing is frozen before the target's first write: there is no copy to be held against it."""
    course.journal.push(UndoStep(kind="stop-target"))
    await start_target(course, freeze=False)


async def verify_handover(course: Course) -> None:
    """The target is well, and has exactly the volumes that the source gave. Raises RollbackWanted."""
    course.journal.enter(Phase.VERIFY)
    if moves_running(course):
        await check_health(course)
    await course.step("verify", lambda: _same_volumes(course))


async def _same_volumes(course: Course) -> None:
    journal = course.journal
    assert journal.target_ref is not None
    wanted = SameVolumesInput(handover=handover_input(course), target_ref=journal.target_ref, disks=journal.disks)
    journal.verify = (await call(HandoverActivities.verify, wanted, summary="the very same volumes?")).records


async def commit_handover(course: Course) -> None:
    """The target is the operator's; what is left of the source VM goes if the plan says so. Data is kept."""
    journal, plan = course.journal, course.plan
    journal.confirmed = True
    journal.enter(Phase.COMMIT)

    async def work() -> None:
        assert journal.target_ref is not None
        vm = VmInput(cloud=plan.target, ref=journal.target_ref, migration=journal.migration)
        await call(ComputeActivities.release, vm, summary="hand the target over")
        if plan.forget_source:
            shell = VmInput(cloud=plan.source, ref=journal.vm.ref, migration=journal.migration)
            await call(HandoverActivities.forget_source, shell, summary="forget the source VM, which has no disks")
        await remove_fence(course)
        fate = Fate.GONE if plan.forget_source else Fate.KEPT
        journal.note(plan.source, "release", journal.vm.name, fate)
        for entry in journal.ledger.open_entries():
            journal.note(entry.cloud, entry.kind, entry.name, Fate.KEPT, owner=entry.owner)
        journal.undo.clear()

    await course.step("commit", work)
