"""The KVM lab: real libvirtd and QEMU, several clouds on one machine, guests that prove what they wrote."""

from labs.kvm.domain import DiskSpec, GuestSpec
from labs.kvm.errors import LabError
from labs.kvm.guest import LabGuest
from labs.kvm.lab import CloudStatus, KvmLab

__all__ = ["CloudStatus", "DiskSpec", "GuestSpec", "KvmLab", "LabError", "LabGuest"]
