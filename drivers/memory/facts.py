"""All that the prechecks ask of the in-memory cloud."""

from __future__ import annotations

from drivers.memory.compute import read_vm
from drivers.memory.networks import all_macs
from drivers.memory.state import CloudState, Vm
from drivers.memory.volumes import read_pools
from whimbrel.model.facts import DiskFacts, SourceFacts, TargetFacts
from whimbrel.model.naming import PREFIX
from whimbrel.model.vm import Power

MEMORY_TOTAL_BYTES = 64 << 30


def source_facts(state: CloudState, name_or_ref: str) -> SourceFacts:
    """Facts of a VM, with what a scenario put in their place. Raises NotFound, Conflict."""
    with state.lock:
        vm = state.find(name_or_ref)
        agent_answers = vm.guest.agent and vm.power is Power.RUNNING
        facts = SourceFacts(
            cloud=state.name,
            vm=read_vm(state, vm),
            disks=tuple(_disk_facts(state, vm, key) for key in vm.volumes),
            running_job=vm.foreign_job,
            agent_configured=vm.guest.agent,
            agent_answers=agent_answers,
            hostname=vm.guest.hostname if agent_answers else None,
            guest_os=vm.guest.os if agent_answers else None,
            hypervisor_version=state.capabilities.version,
            clock=state.now(),
            capabilities=state.capabilities,
            network_mtus=_mtus(state, vm),
        )
        return facts.model_copy(update=state.source_patch.get(vm.spec.name, {}))


def target_facts(state: CloudState) -> TargetFacts:
    """Facts of the cloud as a target, with what a scenario put in their place."""
    with state.lock:
        used = sum(vm.spec.memory_bytes for vm in state.vms.values() if vm.on)
        facts = TargetFacts(
            cloud=state.name,
            vm_names={vm.spec.name: vm.spec.ref for vm in state.vms.values()},
            macs=all_macs(state),
            pools=tuple(read_pools(state)),
            networks=tuple(state.networks.values()),
            vcpus_max=64,
            memory_free_bytes=MEMORY_TOTAL_BYTES - used,
            memory_total_bytes=MEMORY_TOTAL_BYTES,
            archs=("x86_64",),
            machines=("pc", "q35"),
            firmwares=("bios", "uefi"),
            disk_buses=("virtio", "scsi", "sata", "ide"),
            hypervisor_version=state.capabilities.version,
            clock=state.now(),
            capabilities=state.capabilities,
            leftovers=_leftovers(state),
        )
        return facts.model_copy(update=state.target_patch)


def _disk_facts(state: CloudState, vm: Vm, key: str) -> DiskFacts:
    disk = state.disk_of(vm, key)
    tokens = set(disk.tokens())
    unknown = {token for token in tokens if token.startswith(PREFIX) and token not in vm.tokens}
    return DiskFacts(
        key=key,
        image_shared_with=tuple(
            sorted(
                other.spec.name
                for other in state.vms.values()
                if other is not vm and vm.volumes[key] in other.volumes.values()
            )
        ),
        stale_tracking=tuple(sorted(set(disk.damaged_tokens()) | unknown)),
        foreign_tracking=tuple(sorted(token for token in tokens if not token.startswith(PREFIX))),
    )


def _mtus(state: CloudState, vm: Vm) -> dict[str, int]:
    networks = [state.networks[nic.network] for nic in vm.spec.nics if nic.network in state.networks]
    return {network.name: network.mtu for network in networks if network.mtu is not None}


def _leftovers(state: CloudState) -> tuple[str, ...]:
    vms = [vm for vm in state.vms.values() if vm.made_by is not None]
    kept = {volume for vm in vms if vm.handed_over for volume in vm.volumes.values()}
    names = [f"vm {vm.spec.name}" for vm in vms if not vm.handed_over]
    names += [
        f"volume {volume.name}"
        for volume in state.volumes.values()
        if volume.migration is not None and volume.key not in kept
    ]
    return tuple(sorted(names))
