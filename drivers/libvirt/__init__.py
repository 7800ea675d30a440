"""KVM hosts through libvirt, any URI, bytes over the NBD servers of QEMU; other hosts as cold sources, by streams."""

from drivers.libvirt.cloud import LibvirtCloud
from drivers.libvirt.stream_reader import volume_opener

__all__ = ["LibvirtCloud", "volume_opener"]
