"""Rules about the target: a name, a place for every disk, and a host that can run the VM."""

from __future__ import annotations

import re
from collections import defaultdict

from whimbrel.model.figures import bytes_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import held_bytes, listed, mapped_pools, target_can, target_name, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, Answer, FactMissing, found, ok, rule

CUTOVER_RESERVE_BYTES = 256 << 20
"""Room that the last changes may need at the cutover, when the volumes are written already."""


@rule("target.role", "the target cloud can be a target", Severity.BLOCK, catalogue=(79,))
def role(facts: PrecheckFacts) -> Answer:
    """The driver of the target cloud makes volumes and VMs."""
    can = target_can(facts)
    if "target" not in can.roles:
        return found(f"{facts.plan.target} ({can.kind}) can only be a source", "choose another target cloud")
    return ok(f"{can.kind} {can.version}".strip())


@rule("target.permissions", "the credentials may create at the target", Severity.BLOCK, catalogue=(79,), stages=ALWAYS)
def permissions(facts: PrecheckFacts) -> Answer:
    """The target's credentials allow making VMs and volumes."""
    the_target(facts)
    if not facts.target.can_create:
        return found(
            f"the connection to {facts.plan.target} may not create anything",
            "configure credentials that may create volumes and VMs",
        )
    return ok("the connection may create")


@rule("target.name-free", "the name is free at the target", Severity.BLOCK, catalogue=(5,), stages=ALWAYS)
def name_free(facts: PrecheckFacts) -> Answer:
    """No VM of this name exists at the target."""
    the_target(facts)
    name = target_name(facts)
    if name in facts.target.vm_names:
        return found(
            f"{facts.plan.target} has a VM {name} already ({facts.target.vm_names[name]})",
            f"set target_name: {free_name(name, facts)} in the plan, or remove the other VM",
        )
    return ok(f"{name} is free")


def free_name(name: str, facts: PrecheckFacts) -> str:
    """The first of ``name-2``, ``name-3`` and so on that no VM at the target has."""
    number = 2
    while f"{name}-{number}" in facts.target.vm_names:
        number += 1
    return f"{name}-{number}"


@rule("target.name-legal", "the name is legal at the target", Severity.BLOCK, catalogue=(5,))
def name_legal(facts: PrecheckFacts) -> Answer:
    """No slash, no control character, no blank at the rim, 1 to 255 characters: what libvirt and OpenStack take."""
    name = target_name(facts)
    if not 1 <= len(name) <= 255 or name != name.strip() or re.search(r"[/\x00-\x1f\x7f]", name):
        better = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:255] or "vm"
        return found(f"{name!r} is not a legal name", f"set target_name: {better} in the plan")
    return ok(f"{name} is legal")


@rule("storage.mapped", "every pool is mapped", Severity.BLOCK, catalogue=(62,))
def mapped(facts: PrecheckFacts) -> Answer:
    """The plan names a target pool for every disk (``*`` stands for all others)."""
    missing = [
        f"{disk.key} in {disk.pool or 'no pool'}"
        for disk in the_vm(facts).disks
        if facts.plan.pool_for(disk.pool) is None
    ]
    if missing:
        return found(f"no target pool for {listed(missing)}", "add the pool, or '*' for all others, to storage:")
    return ok(listed([f"{disk.key} -> {facts.plan.pool_for(disk.pool)}" for disk in the_vm(facts).disks]))


@rule("storage.exists", "every target pool exists", Severity.BLOCK, catalogue=(62,), stages=ALWAYS)
def exists(facts: PrecheckFacts) -> Answer:
    """The target cloud shows each pool that the plan maps a disk to."""
    the_target(facts)
    there = {pool.name for pool in facts.target.pools}
    wanted = {facts.plan.pool_for(disk.pool) for disk in the_vm(facts).disks} - {None}
    missing = sorted(str(name) for name in wanted - there)
    if missing:
        return found(
            f"{facts.plan.target} has no pool {listed(missing)}; it has {listed(sorted(there)) or 'none'}",
            "create it, or correct storage: in the plan",
        )
    return ok(f"{len(wanted)} target pools exist")


@rule("storage.active", "every target pool is active", Severity.BLOCK, catalogue=(62,), stages=ALWAYS)
def active(facts: PrecheckFacts) -> Answer:
    """Volumes can only be made in a pool that is started."""
    down = sorted({pool.name for _, pool in mapped_pools(facts) if not pool.active})
    if down:
        return found(f"not active at {facts.plan.target}: {listed(down)}", "start the pool (virsh pool-start)")
    return ok("all target pools are active")


def _needs(facts: PrecheckFacts, *, whole: bool) -> dict[str, tuple[int, int]]:
    """Target pool -> (bytes needed, bytes free): the disks' whole sizes or what they hold now."""
    need: dict[str, int] = defaultdict(int)
    free: dict[str, int] = {}
    hidden = set()
    for disk, pool in mapped_pools(facts):
        if pool.free_bytes is None:
            hidden.add(pool.name)
            continue
        need[pool.name] += disk.size_bytes if whole else held_bytes(disk)
        free[pool.name] = pool.free_bytes
    if hidden and not free:
        raise FactMissing(f"the free space of {listed(sorted(hidden))} (an administrator may ask)")
    if not free:
        raise FactMissing("no disk is mapped to a pool that exists")
    return {name: (need[name], free[name]) for name in free}


@rule("storage.free-space", "the target pools have room", Severity.BLOCK, catalogue=(59,), stages=ALWAYS)
def free_space(facts: PrecheckFacts) -> Answer:
    """Free space for what the disks hold now, summed per pool; at the cutover for what the last changes may add."""
    needs = _needs(facts, whole=False)
    if facts.stage == "cutover":
        last = (facts.path.dirty_bytes_per_s or 0.0) * facts.plan.rounds.outage_budget_s
        whole = _needs(facts, whole=True)
        needs = {
            name: (min(whole[name][0] - held, int(max(CUTOVER_RESERVE_BYTES, last))), free)
            for name, (held, free) in needs.items()
        }
    short = [
        f"{name} needs {bytes_text(need)} and has {bytes_text(free)}"
        for name, (need, free) in needs.items()
        if need > free
    ]
    if short:
        return found(listed(short), "free space in the pool, or map the disks to another one")
    return ok(
        listed([f"{name}: {bytes_text(free)} free, {bytes_text(need)} needed" for name, (need, free) in needs.items()])
    )


@rule("storage.headroom", "the target pools have room for full disks", Severity.WARN, catalogue=(59, 68))
def headroom(facts: PrecheckFacts) -> Answer:
    """Thin volumes grow: room for the disks' whole sizes, so that the pool does not run full later."""
    short = [
        f"{name} would need {bytes_text(need)} and has {bytes_text(free)}"
        for name, (need, free) in _needs(facts, whole=True).items()
        if need > free
    ]
    if short:
        return found(f"when the guest fills its disks: {listed(short)}", "enlarge the pool, or watch its fill level")
    return ok("room for the disks' whole sizes")


@rule("target.vcpus", "the target allows this many vCPUs", Severity.BLOCK, catalogue=(55, 57), stages=ALWAYS)
def vcpus(facts: PrecheckFacts) -> Answer:
    """The VM has no more vCPUs than one VM may have at the target."""
    the_target(facts)
    most = facts.target.vcpus_max
    if most is None:
        raise FactMissing("the most vCPUs that the target allows")
    if the_vm(facts).vcpus > most:
        return found(
            f"the VM has {the_vm(facts).vcpus} vCPUs, {facts.plan.target} allows {most}", "give the VM fewer vCPUs"
        )
    return ok(f"{the_vm(facts).vcpus} of at most {most} vCPUs")


@rule("target.memory", "the target has memory for the VM", Severity.BLOCK, catalogue=(55, 58), stages=ALWAYS)
def memory(facts: PrecheckFacts) -> Answer:
    """More than the host has blocks; more than is free now is a warning, as hosts over-commit."""
    the_target(facts)
    need, total, free = the_vm(facts).memory_bytes, facts.target.memory_total_bytes, facts.target.memory_free_bytes
    if total is not None and need > total:
        return found(
            f"the VM needs {bytes_text(need)}, {facts.plan.target} has {bytes_text(total)} in all",
            "choose a larger target host, or give the VM less memory",
        )
    if free is not None and need > free:
        return found(
            f"the VM needs {bytes_text(need)}, {bytes_text(free)} are free at {facts.plan.target}",
            "stop something there before the cutover: the VM may not start, or the host may swap",
            Severity.WARN,
        )
    if total is None and free is None and facts.fit.hosts is not None:
        return ok(f"{bytes_text(need)}: target.hosts tells which hosts have it")
    if total is None and free is None:
        raise FactMissing("the target's memory")
    return ok(f"{bytes_text(need)} needed, {bytes_text(free if free is not None else total or 0)} there")


@rule("target.arch", "the target runs the VM's architecture", Severity.BLOCK, catalogue=(8,))
def arch(facts: PrecheckFacts) -> Answer:
    """The target's hosts run guests of this architecture."""
    the_target(facts)
    if not facts.target.archs:
        raise FactMissing("the architectures that the target runs")
    if the_vm(facts).arch not in facts.target.archs:
        return found(
            f"the VM is {the_vm(facts).arch}, {facts.plan.target} runs {listed(facts.target.archs)}",
            "choose a target with hosts of this architecture",
        )
    return ok(the_vm(facts).arch)


@rule("target.cpu-model", "the target knows the VM's CPU model", Severity.BLOCK, catalogue=(8,))
def cpu_model(facts: PrecheckFacts) -> Answer:
    """A named CPU model must be usable at the target; host models follow the target's own CPU."""
    the_vm(facts)
    the_target(facts)
    model = facts.source.cpu_model
    if model is None or model in {"host-passthrough", "host-model", "maximum", "custom"}:
        return ok(f"{model or 'default CPU'}: the target's own is used")
    if not facts.target.cpu_models:
        raise FactMissing("the CPU models usable at the target")
    if model not in facts.target.cpu_models:
        return found(
            f"the VM wants CPU model {model}, which {facts.plan.target} cannot give",
            "set an older CPU model that both clouds know, and restart the VM once at the source",
        )
    return ok(model)


@rule("target.machine", "the target knows the machine type", Severity.BLOCK, catalogue=(8, 60))
def machine(facts: PrecheckFacts) -> Answer:
    """A versioned machine type (``pc-q35-9.2``) must exist at the target, else devices move under the guest."""
    the_target(facts)
    wanted = the_vm(facts).machine
    if not wanted:
        raise FactMissing("the VM's machine type")
    if not facts.target.machines:
        raise FactMissing("the machine types that the target offers")
    if wanted not in facts.target.machines:
        return found(
            f"{facts.plan.target} has no machine type {wanted}",
            "upgrade the target's hypervisor, or set an older machine type at the source and restart the VM",
        )
    return ok(wanted)


@rule("target.firmware", "the target offers the VM's firmware", Severity.BLOCK, catalogue=(9,))
def firmware(facts: PrecheckFacts) -> Answer:
    """BIOS, UEFI or UEFI with secure boot; a guest installed for one does not boot with another."""
    the_target(facts)
    wanted = the_vm(facts).firmware
    if wanted not in facts.target.firmwares:
        return found(
            f"the VM boots by {wanted}, {facts.plan.target} offers {listed(facts.target.firmwares) or 'none'}",
            "install the firmware there (package ovmf), or choose another target",
        )
    return ok(wanted)


@rule("target.leftovers", "nothing of earlier migrations is left", Severity.WARN, catalogue=(46,))
def leftovers(facts: PrecheckFacts) -> Answer:
    """Objects of migrations that were not handed over take space and may hold names."""
    the_target(facts)
    left = facts.target.leftovers
    if left:
        return found(
            f"{len(left)} objects of earlier migrations: {listed(left)}",
            "confirm, roll back or abort those migrations; remove what belongs to none",
        )
    return ok("nothing left of earlier migrations")


RULES = (
    role,
    permissions,
    name_free,
    name_legal,
    mapped,
    exists,
    active,
    free_space,
    headroom,
    vcpus,
    memory,
    arch,
    cpu_model,
    machine,
    firmware,
    leftovers,
)
