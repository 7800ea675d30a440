"""Activity that gathers facts from both clouds and lets the rules judge them."""

from __future__ import annotations

import platform
import shutil
import ssl
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from temporalio import activity

from activities.drill import last_passed, trace_count
from activities.probe import probe_path, probe_ports
from activities.probe_import import ImportProbe
from activities.sharing import handover_facts
from whimbrel.contracts.activity_io import PrecheckAnswer, PrecheckRequest
from whimbrel.errors import Conflict, NotFound, WhimbrelError
from whimbrel.model.facts import FitFacts, HandoverFacts, PathFacts, SourceFacts, TargetFacts
from whimbrel.model.finding import PrecheckFacts, PrecheckResult
from whimbrel.model.plan import CommandCheck, VmPlan
from whimbrel.model.vm import VmSpec
from whimbrel.ports.cloud import Cloud, CloudRegistry
from whimbrel.precheck.registry import run_rules
from whimbrel.precheck.streaming import copies_drill

PROBE_ATTEMPTS = 4
"""A fault of the moment must not refuse a migration; one that stays so long is a finding."""


def tools() -> dict[str, str]:
    """Versions of what this mover runs on: everything else is in the hypervisors."""
    return {
        "python": platform.python_version(),
        "whimbrel": metadata.version("whimbrel"),
        "temporalio": metadata.version("temporalio"),
        "xxhash": metadata.version("xxhash"),
        "tls": ssl.OPENSSL_VERSION,
    }


class PrecheckActivities:
    """Facts and findings."""

    def __init__(self, clouds: CloudRegistry, state_dir: Path, importing: ImportProbe | None = None) -> None:
        self._clouds = clouds
        self._state_dir = state_dir
        self._importing = importing

    @activity.defn(name="precheck.run", no_thread_cancel_exception=True)
    def run(self, wanted: PrecheckRequest) -> PrecheckAnswer:
        """Gather once, judge by every rule of the stage."""
        plan = wanted.plan
        source, target = self._clouds.get(plan.source), self._clouds.get(plan.target)
        with source.one_look(), target.one_look():
            source_facts, target_facts, handover = self._facts(wanted, source, target)
        both = source_facts.reachable and target_facts.reachable
        if wanted.probe and plan.mode != "dual-attach" and both:
            path = probe_path(
                plan,
                source,
                target,
                facts=source_facts,
                migration=wanted.migration,
                state_dir=self._state_dir,
                patient=activity.info().attempt < PROBE_ATTEMPTS,
                look=target.imports is None and (wanted.drill or plan.mode == "streaming"),
            )
        else:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            path = PathFacts(state_free_bytes=shutil.disk_usage(self._state_dir).free)
        found: dict[str, object] = {
            "measured_at": datetime.now(UTC),
            "tools": tools(),
            "commands": {
                check.argv[0]: shutil.which(check.argv[0]) or ""
                for check in plan.health.checks
                if isinstance(check, CommandCheck)
            },
        }
        if source_facts.vm is not None:
            ref, disks = source_facts.vm.ref, tuple(disk.key for disk in source_facts.vm.disks)
            found["drilled_at"] = last_passed(self._state_dir, plan.source, ref)
            found["traces"] = trace_count(self._state_dir, plan.source, ref, disks)
        if source_facts.clock is not None and target_facts.clock is not None:
            found["clock_skew_s"] = abs((source_facts.clock - target_facts.clock).total_seconds())
        if path.read_bytes_per_s is None and wanted.link_hint is not None:
            found |= {"read_bytes_per_s": wanted.link_hint, "write_bytes_per_s": wanted.link_hint}
        if path.dirty_bytes_per_s is None and wanted.dirty_hint is not None:
            found["dirty_bytes_per_s"] = wanted.dirty_hint
        if wanted.probe and both and plan.mode == "streaming" and not wanted.drill:
            found |= self._import_facts(plan, target, source_facts.vm, wanted.migration)
        path = path.model_copy(update=found)
        fit, companions = FitFacts(), None
        if both and source_facts.vm is not None:
            patient = activity.info().attempt < PROBE_ATTEMPTS
            with source.one_look(), target.one_look():
                fit = fit_facts(plan, target, source_facts.vm, wanted, patient=patient)
                companions = companions_of(plan, source)
        judged = PrecheckFacts(
            plan=plan,
            source=source_facts,
            target=target_facts,
            path=path,
            handover=handover,
            stage=wanted.stage,
            drill=wanted.drill,
            fit=fit,
            companions=companions,
        )
        return PrecheckAnswer(
            result=PrecheckResult(findings=run_rules(judged), path=path),
            # A target whose abilities are not known is blocked by the rules.
            copies_drill=judged.target.capabilities is not None and copies_drill(judged),
        )

    @staticmethod
    def _facts(wanted: PrecheckRequest, source: Cloud, target: Cloud) -> tuple[SourceFacts, TargetFacts, HandoverFacts]:
        plan = wanted.plan
        target_facts: TargetFacts = target.target_facts()
        try:
            source_facts: SourceFacts = source.source_facts(plan.vm)
        except NotFound:
            source_facts = SourceFacts(cloud=plan.source)
        except Conflict as error:
            source_facts = SourceFacts(cloud=plan.source, same_name=(plan.vm, str(error)))
        handover = HandoverFacts()
        both = source_facts.reachable and target_facts.reachable
        if plan.mode == "dual-attach" and both and wanted.stage != "cutover":
            # At the cutover the steps themselves look, one by one, and much more closely.
            handover = handover_facts(
                plan,
                source,
                target,
                source_facts.vm,
                migration=wanted.migration,
                probe=wanted.probe,
                patient=activity.info().attempt < PROBE_ATTEMPTS,
            )
        return source_facts, target_facts, handover

    def _import_facts(self, plan: VmPlan, target: Cloud, vm: VmSpec | None, migration: str) -> dict[str, object]:
        """Whether volumes can be imported here; nothing where the target's volumes are written by servers."""
        imports = target.imports
        pools = {plan.pool_for(disk.pool) for disk in vm.disks} if vm is not None else set()
        named = sorted(pool for pool in pools if pool is not None)
        if imports is None or not named:
            return {}
        blockers = tuple(imports.blockers(named))
        if blockers or self._importing is None:
            return {"import_blockers": blockers}
        patient = activity.info().attempt < PROBE_ATTEMPTS
        try:
            self._importing.run(target, imports, named[0], migration, patient=patient)
        except WhimbrelError as error:
            if error.retryable and patient:
                raise
            return {"import_tried": False, "import_why_not": error.message}
        return {"import_tried": True}


def fit_facts(plan: VmPlan, target: Cloud, vm: VmSpec, wanted: PrecheckRequest, *, patient: bool) -> FitFacts:
    """What the target says about the VM as it is to be; with ``probe`` its cards' ports are made and removed."""
    nics = [(nic, plan.network_for(nic.network)) for nic in vm.nics]
    mapped = vm.model_copy(
        update={
            "nics": tuple(nic.model_copy(update={"network": network}) for nic, network in nics if network is not None),
            "disks": tuple(disk.model_copy(update={"pool": plan.pool_for(disk.pool)}) for disk in vm.disks),
        }
    )
    fit = target.fit(mapped, plan.placement.size_for(vm.size_name))
    if not fit.asked or not wanted.probe or wanted.stage == "cutover":
        return fit
    refused = probe_ports(target, mapped, wanted.migration, patient=patient)
    return fit.model_copy(update={"ports_tried": True, "ports_refused": refused})


def companions_of(plan: VmPlan, source: Cloud) -> tuple[VmSpec, ...] | None:
    """The plan's other VMs as the source has them now; None when the plan names none."""
    if not plan.companions:
        return None
    wanted = {one.vm for one in plan.companions}
    return tuple(vm for vm in source.compute.inventory() if wanted & {vm.name, vm.ref})
