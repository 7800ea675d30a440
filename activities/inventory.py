"""Activity that lists a cloud's VMs for planning."""

from __future__ import annotations

from temporalio import activity

from whimbrel.contracts.migration import InventoryInput, InventoryResult, VmSummary
from whimbrel.model.vm import Capabilities, VmSpec
from whimbrel.ports.cloud import CloudRegistry
from whimbrel.precheck.suggest import suggest_mode


def summarise(vm: VmSpec, capabilities: Capabilities) -> VmSummary:
    """The line of a VM in a listing, with the mode that suits it."""
    mode, why = suggest_mode(vm, capabilities)
    return VmSummary(
        name=vm.name,
        ref=vm.ref,
        power=vm.power.value,
        vcpus=vm.vcpus,
        memory_bytes=vm.memory_bytes,
        disk_bytes=sum(disk.size_bytes for disk in vm.disks),
        disks=len(vm.disks),
        pools=tuple(sorted({disk.pool for disk in vm.disks if disk.pool})),
        networks=tuple(sorted({nic.network for nic in vm.nics})),
        suggested=mode,
        why=why,
    )


class InventoryActivities:
    """Looking at a whole cloud."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="inventory.list", no_thread_cancel_exception=True)
    def list(self, wanted: InventoryInput) -> InventoryResult:
        """One page of VMs by name, with the cloud's pools and networks."""
        cloud = self._clouds.get(wanted.cloud)
        capabilities = cloud.capabilities()
        vms = sorted((vm for vm in cloud.compute.inventory() if vm.name > wanted.after), key=lambda vm: vm.name)
        page = vms[: wanted.limit]
        return InventoryResult(
            vms=tuple(summarise(vm, capabilities) for vm in page),
            pools=tuple(pool.name for pool in cloud.volumes.pools()),
            networks=tuple(network.name for network in cloud.networks.networks()),
            more=len(vms) > len(page),
        )
