"""An OpenStack cloud: Nova, Cinder and Neutron through openstacksdk, its volumes as RBD images."""

from drivers.openstack.cloud import OpenStackCloud

__all__ = ["OpenStackCloud"]
