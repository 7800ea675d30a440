"""RBD images of a Ceph cluster: opened as block devices, and looked after for the drivers of clouds that keep volumes
in them.
"""

from drivers.ceph.device import open_rbd
from drivers.ceph.images import RbdImages
from drivers.ceph.liveimport import ImportState, RbdImports

__all__ = ["ImportState", "RbdImages", "RbdImports", "open_rbd"]
