"""KVM hosts through libvirt: any URI, bytes over the NBD servers of QEMU."""

from drivers.libvirt.cloud import LibvirtCloud

__all__ = ["LibvirtCloud"]
