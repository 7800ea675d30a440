"""An OpenStack cloud: Nova, Cinder and Neutron through openstacksdk, its volumes as RBD images or through movers."""

from drivers.openstack.cloud import OpenStackCloud
from drivers.openstack.mover import MoverSettings

__all__ = ["MoverSettings", "OpenStackCloud"]
