"""The first steps: precheck, reading the source, making the target volumes."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from activities.compute import ComputeActivities
from activities.precheck import PrecheckActivities
from activities.volume import VolumeActivities
from whimbrel.contracts.activity_io import EnsureVolumesInput, PrecheckRequest, VmInput
from whimbrel.contracts.migration import UndoStep
from whimbrel.errors import InvalidPlan
from whimbrel.model.finding import Finding
from whimbrel.model.ledger import Fate
from whimbrel.model.naming import volume_name
from whimbrel.model.progress import Phase
from whimbrel.model.vm import DiskFormat, DiskSpec, NicSpec, TargetVm, VmSpec, VolumeSpec
from workflows.calls import call
from workflows.course import Course


async def precheck(course: Course) -> tuple[Finding, ...]:
    """Judge the plan against facts and a tried data path; the blocking findings, empty when the way is free."""
    journal = course.journal
    journal.enter(Phase.PRECHECK)

    async def work() -> tuple[Finding, ...]:
        request = PrecheckRequest(plan=course.plan, stage="start", migration=journal.migration, drill=course.drill)
        if course.from_copy:
            # Trying the data path would open a point at the source, where rounds run; the rounds have tried it.
            request = request.model_copy(update={"probe": False})
        answer = await call(
            PrecheckActivities.run, request, summary="gather facts, try the data path", queue=course.data_queue
        )
        course.copies_drill = answer.copies_drill
        journal.findings = tuple(f.line for f in answer.result.findings if f.outcome != "ok")
        journal.dirty_hint = answer.result.path.dirty_bytes_per_s
        rates = (answer.result.path.read_bytes_per_s, answer.result.path.write_bytes_per_s)
        journal.link_hint = min((rate for rate in rates if rate), default=None)
        return answer.result.blocking()

    return await course.step("precheck", work)


async def look(course: Course) -> VmSpec:
    """Read the source VM; what is read now is what a rollback must give back."""
    result = await call(
        ComputeActivities.inspect,
        VmInput(cloud=course.plan.source, ref=course.plan.vm),
        summary="read the source VM",
    )
    course.journal.spec = result.vm
    return result.vm


def wanted_format(course: Course, disk: DiskSpec) -> DiskFormat:
    """Format of a target volume: the plan's, or the source's where it is one that keeps change tracking."""
    if course.plan.mode == "streaming":
        return "raw"  # what a streaming server fills
    if course.plan.disk_format != "keep":
        return course.plan.disk_format
    return "raw" if disk.format == "raw" else "qcow2"


def mapped_pool(course: Course, disk: DiskSpec) -> str:
    """Target pool of a disk. Raises ApplicationError (InvalidPlan) when the plan maps none."""
    pool = course.plan.pool_for(disk.pool)
    if pool is None:
        raise ApplicationError(
            f"the plan maps no target pool for disk {disk.key} in {disk.pool or 'no pool'}",
            {"action": "add it under storage: in the plan"},
            type=InvalidPlan.__name__,
            non_retryable=True,
        )
    return pool


def mapped_nics(course: Course) -> tuple[NicSpec, ...]:
    """The VM's network cards on the target's networks. Raises ApplicationError (InvalidPlan) for an unmapped one."""
    nics: list[NicSpec] = []
    for nic in course.journal.vm.nics:
        network = course.plan.network_for(nic.network)
        if network is None:
            raise ApplicationError(
                f"the plan maps no target network for {nic.network} (card {nic.mac})",
                {"action": "add it under networks: in the plan"},
                type=InvalidPlan.__name__,
                non_retryable=True,
            )
        nics.append(nic.model_copy(update={"network": network}))
    return tuple(nics)


def target_vm(course: Course, name: str) -> TargetVm:
    """The VM to be rebuilt, on the volumes that are there. Raises ApplicationError (InvalidPlan)."""
    journal, placement = course.journal, course.plan.placement
    return TargetVm(
        migration=journal.migration,
        name=name,
        source=journal.vm,
        disks=journal.disks,
        nics=mapped_nics(course),
        size=placement.size_for(journal.vm.size_name),
        zone=placement.zone,
        group=placement.group,
    )


async def prepare(course: Course) -> None:
    """Write the target volumes into the ledger, then make them."""
    journal, plan = course.journal, course.plan
    journal.enter(Phase.PREPARE)

    async def work() -> None:
        spec = await look(course)
        mapped_nics(course)
        name = plan.target_name or spec.name
        volumes = {
            disk.key: VolumeSpec(
                name=volume_name(name, disk.key, journal.migration),
                pool=mapped_pool(course, disk),
                size_bytes=disk.size_bytes,
                format=wanted_format(course, disk),
                migration=journal.migration,
            )
            for disk in spec.disks
        }
        journal.push(UndoStep(kind="discard-manifests"))
        journal.push(UndoStep(kind="remove-volumes"))
        journal.push(UndoStep(kind="close-writer"))
        if course.takes_points:
            journal.push(UndoStep(kind="forget-points"))
        for volume in volumes.values():
            journal.note(plan.target, "volume", volume.name, Fate.INTENDED, owner=volume.pool)
        wanted = EnsureVolumesInput(cloud=plan.target, migration=journal.migration, spec=spec, volumes=volumes)
        made = await call(VolumeActivities.ensure, wanted, summary=f"make {len(volumes)} target volumes")
        journal.disks = made.disks
        for disk in made.disks:
            journal.note(plan.target, "volume", disk.volume.name, Fate.CREATED, owner=disk.volume.pool)
        workflow.logger.info("volumes.made", extra={"count": len(made.disks)})

    await course.step("prepare", work)
