"""The OpenStack lab: real clouds (Keystone, Placement, Glance, Cinder, Nova, Neutron) over one real Ceph."""

from labs.openstack.handle import CloudHandle
from labs.openstack.lab import OpenStackLab, ServiceStatus
from labs.openstack.server import LabServer, boot

__all__ = ["CloudHandle", "LabServer", "OpenStackLab", "ServiceStatus", "boot"]
