"""Rules about the source's disks: whole, of one owner, and what reading their changes will cost."""

from __future__ import annotations

from whimbrel.model.figures import bytes_text, duration_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import (
    disk_facts,
    held_bytes,
    listed,
    mapped_pools,
    source_can,
    target_can,
    the_target,
    the_vm,
    untracked,
)
from whimbrel.precheck.rule import Answer, FactMissing, found, ok, rule

SECTOR_BYTES = 512
UNMEASURED_READ_BYTES_PER_S = 200e6
"""Stands in for the read rate while planning, when nothing was measured yet; the finding says so."""


@rule("disk.present", "the VM has a disk that can be moved", Severity.BLOCK, catalogue=(25,))
def present(facts: PrecheckFacts) -> Answer:
    """At least one writable disk; a VM that boots from the network or a CD has nothing to move."""
    vm = the_vm(facts)
    if not any(not disk.read_only for disk in vm.disks):
        return found("the VM has no writable disk", "build it anew at the target: there is no data to move")
    total = sum(disk.size_bytes for disk in vm.disks)
    return ok(f"{len(vm.disks)} disks, {bytes_text(total)} in all")


@rule("disk.size", "every disk has a size", Severity.BLOCK, catalogue=(25,))
def size(facts: PrecheckFacts) -> Answer:
    """Sizes are above zero and whole sectors of 512 bytes."""
    odd = [
        f"{disk.key} ({disk.size_bytes} bytes)"
        for disk in the_vm(facts).disks
        if disk.size_bytes <= 0 or disk.size_bytes % SECTOR_BYTES
    ]
    if odd:
        return found(
            f"no size that can be moved: {listed(odd)}",
            "look at the disk's image at the source; grow a raw file to a multiple of 512 bytes",
        )
    return ok("all sizes are whole sectors")


@rule("disk.format", "every disk's format is known", Severity.BLOCK, catalogue=(31,))
def source_format(facts: PrecheckFacts) -> Answer:
    """Disks are raw or qcow2 images."""
    strange = [disk.key for disk in the_vm(facts).disks if disk.format == "other"]
    if strange:
        return found(
            f"images of a format that is not read: {listed(strange)}", "convert them to qcow2 at the source first"
        )
    return ok(listed([f"{disk.key} {disk.format}" for disk in the_vm(facts).disks]))


@rule("disk.target-format", "the target can hold the wanted format", Severity.BLOCK, catalogue=(62,))
def target_format(facts: PrecheckFacts) -> Answer:
    """The plan's disk_format, or the source's own with ``keep``, is one that the target cloud makes."""
    offered = target_can(facts).disk_formats
    wanted = {
        disk.key: disk.format.removesuffix("-v2") if facts.plan.disk_format == "keep" else facts.plan.disk_format
        for disk in the_vm(facts).disks
    }
    if facts.plan.mode == "streaming":
        wanted = dict.fromkeys(wanted, "raw")
    missing = [f"{key} as {form}" for key, form in wanted.items() if form not in offered]
    if missing:
        return found(
            f"{facts.plan.target} makes {listed(offered)} only: {listed(missing)}",
            f"set disk_format: {offered[0] if offered else 'raw'} in the plan",
        )
    return ok(listed([f"{key} as {form}" for key, form in wanted.items()]))


@rule("disk.tracking", "changes of every disk are tracked", Severity.WARN, catalogue=(16, 39))
def tracking(facts: PrecheckFacts) -> Answer:
    """Raw and qcow2 version 2 images hold no persistent bitmap, and no mover server tells changes: such disks are
    read and hashed whole in each round.
    """
    vm = the_vm(facts)
    if not facts.plan.runs_rounds:
        return ok(f"not needed in mode {facts.plan.mode}")
    whole = untracked(vm)
    if not source_can(facts).change_tracking:
        whole = tuple(disk for disk in vm.disks if not disk.read_only)
    if not whole:
        return ok("every disk carries tracking")
    total = sum(held_bytes(disk) for disk in whole)
    rate, known = facts.path.read_bytes_per_s or UNMEASURED_READ_BYTES_PER_S, bool(facts.path.read_bytes_per_s)
    cost_s = total / rate
    names = listed([f"{disk.key} ({disk.format})" for disk in whole])
    return found(
        f"no tracking for {names}: each round, and the outage, reads "
        f"{bytes_text(total)}, about {duration_text(cost_s)}{'' if known else ' at an assumed 200 MB/s'}",
        "convert to qcow2 (compat 1.1) at the source for short rounds and a short outage, or accept the cost",
    )


@rule("disk.tracking-stale", "no damaged checkpoints", Severity.BLOCK, catalogue=(40,))
def tracking_stale(facts: PrecheckFacts) -> Answer:
    """No checkpoint or bitmap is damaged or known to only one of metadata and disk."""
    stale = [f"{disk.key}: {name}" for disk in disk_facts(facts) for name in disk.stale_tracking]
    if not stale:
        return ok("no damaged checkpoints")
    if not facts.plan.runs_rounds:
        return found(
            f"damaged checkpoints or bitmaps: {listed(stale)}",
            f"nothing: mode {facts.plan.mode} does not use them",
            Severity.INFO,
        )
    return found(
        f"damaged checkpoints or bitmaps: {listed(stale)}",
        "remove them (virsh checkpoint-delete --metadata, then qemu-img bitmap --remove on the stopped VM), "
        "or set mode: cold",
    )


@rule("disk.tracking-foreign", "no checkpoints of other tools", Severity.WARN, catalogue=(40,))
def tracking_foreign(facts: PrecheckFacts) -> Answer:
    """Checkpoints of a backup tool stay behind; its first backup at the target is a full one."""
    foreign = [f"{disk.key}: {name}" for disk in disk_facts(facts) for name in disk.foreign_tracking]
    if foreign:
        return found(
            f"checkpoints of other tools exist: {listed(foreign)}",
            "pause the backup tool during the migration; expect a full backup afterwards",
        )
    return ok("no checkpoints of other tools")


@rule("disk.chain-complete", "every backing image can be read", Severity.BLOCK, catalogue=(30, 42))
def chain_complete(facts: PrecheckFacts) -> Answer:
    """All images of every disk's backing chain could be opened."""
    broken = [disk.key for disk in disk_facts(facts) if not disk.chain_complete]
    if broken:
        return found(
            f"an image below {listed(broken)} cannot be opened",
            "bring the missing image back, or correct the path (qemu-img rebase -u)",
        )
    depth = max((len(disk.backing_chain) for disk in the_vm(facts).disks), default=0)
    return ok(f"all images open, at most {depth} below a top one")


@rule("disk.chain-owned", "no image belongs to two VMs", Severity.BLOCK, catalogue=(42,))
def chain_owned(facts: PrecheckFacts) -> Answer:
    """No other VM has a disk's own image; a template shared below it (linked clone) is only read: a warning."""
    both = [f"{disk.key} with {listed(disk.image_shared_with)}" for disk in disk_facts(facts) if disk.image_shared_with]
    if both:
        return found(
            f"the same image is a disk of two VMs: {listed(both)}",
            "find out which VM owns it and detach it from the other: two writers destroy it",
        )
    clones = [
        f"{disk.key} with {listed(disk.chain_shared_with)}" for disk in disk_facts(facts) if disk.chain_shared_with
    ]
    if clones:
        return found(
            f"a backing image is shared: {listed(clones)}",
            "nothing, if it is a template: the target gets a flat copy and needs its space; else commit the chain",
            Severity.WARN,
        )
    return ok("every image belongs to this VM alone")


@rule("disk.shareable", "no disk is shared for writing", Severity.BLOCK, catalogue=(28, 29))
def shareable(facts: PrecheckFacts) -> Answer:
    """A multi-writer disk changes behind this VM's back: neither its points in time nor its tracking can be trusted."""
    shared = [disk.key for disk in the_vm(facts).disks if disk.shareable and not disk.read_only]
    if shared:
        return found(
            f"disks that several VMs may write: {listed(shared)}",
            "stop the other writers and take the sharing off for the migration, or detach these disks",
        )
    return ok("no shared disks")


@rule("disk.read-only", "no read-only disks", Severity.INFO, catalogue=(38,))
def read_only(facts: PrecheckFacts) -> Answer:
    """Read-only disks are copied once, with the baseline."""
    fixed = [disk.key for disk in the_vm(facts).disks if disk.read_only]
    if fixed:
        return found(f"read-only disks: {listed(fixed)}", "nothing: they are copied once")
    return ok("all disks are writable")


@rule("disk.cdrom-media", "no CD is inserted", Severity.WARN, catalogue=(38,))
def cdrom_media(facts: PrecheckFacts) -> Answer:
    """An inserted CD image is not moved; a definition that names it could not start at the target."""
    the_vm(facts)
    if facts.source.cdroms_with_media:
        return found(
            f"CD images are inserted: {listed(facts.source.cdroms_with_media)}",
            "eject them; the target gets an empty drive",
        )
    return ok("no CD inserted")


@rule("disk.encrypted", "no image is encrypted by the hypervisor", Severity.BLOCK, catalogue=(23, 66))
def encrypted(facts: PrecheckFacts) -> Answer:
    """Images that the hypervisor encrypts are read decrypted, so the target volumes would be in the clear."""
    secret = [disk.key for disk in disk_facts(facts) if disk.encrypted]
    if secret:
        return found(
            f"encrypted images: {listed(secret)}; the copy would be stored in the clear",
            "accept this finding if the target's storage is encrypted itself; else encrypt inside the guest",
        )
    return ok("no encrypted images (encryption inside the guest is moved as it is)")


@rule("disk.sector-size", "sector sizes agree", Severity.WARN, catalogue=(41,))
def sector_size(facts: PrecheckFacts) -> Answer:
    """A guest formatted for 512-byte sectors may not find its partitions on 4096-byte ones, and the other way round."""
    source = {disk.key: disk.sector_bytes for disk in disk_facts(facts)}
    told = [(disk, pool) for disk, pool in mapped_pools(facts) if pool.sector_bytes is not None]
    unlike = [
        f"{disk.key} has {source[disk.key]}-byte sectors, {pool.name} {pool.sector_bytes}-byte ones"
        for disk, pool in told
        if source[disk.key] != pool.sector_bytes
    ]
    if unlike:
        return found(listed(unlike), "choose a target pool with the same sector size, or set it on the target's disk")
    if not told:
        raise FactMissing("the sector size of the target's pools")
    return ok(f"{len(told)} disks keep their sector size")


@rule("disk.internal-snapshots", "no snapshots inside images", Severity.WARN, catalogue=(17,))
def internal_snapshots(facts: PrecheckFacts) -> Answer:
    """Snapshots inside a qcow2 image are not moved: the target gets the present content only."""
    inside = [f"{disk.key} ({disk.internal_snapshots})" for disk in disk_facts(facts) if disk.internal_snapshots]
    if inside:
        return found(f"snapshots inside images: {listed(inside)}", "delete those not needed (qemu-img snapshot -d)")
    return ok("no snapshots inside images")


@rule("disk.bus", "the target knows every disk's bus", Severity.BLOCK, catalogue=(31, 60))
def bus(facts: PrecheckFacts) -> Answer:
    """Disks keep their bus, as a guest without the right driver does not find its root."""
    the_target(facts)
    if not facts.target.disk_buses:
        raise FactMissing("the disk buses that the target offers")
    strange = [f"{disk.key} ({disk.bus})" for disk in the_vm(facts).disks if disk.bus not in facts.target.disk_buses]
    if strange:
        return found(
            f"{facts.plan.target} offers no such bus: {listed(strange)}",
            "give the VM virtio disks at the source first (the guest needs the driver in its initramfs)",
        )
    return ok(listed(sorted({disk.bus for disk in the_vm(facts).disks})))


RULES = (
    present,
    size,
    source_format,
    target_format,
    tracking,
    tracking_stale,
    tracking_foreign,
    chain_complete,
    chain_owned,
    shareable,
    read_only,
    cdrom_media,
    encrypted,
    sector_size,
    internal_snapshots,
    bus,
)
