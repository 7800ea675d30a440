"""A cloud that lives in this process's memory: real bytes, real change tracking, no hypervisor.

For tests of workflows, activities and the data plane. Clouds are found by name, so that an object made by a restarted
worker sees the same VMs, volumes, points and sessions. What a test does to such a cloud behind the ports' back (guest
writes, faults, crashes) goes through ``drivers.memory.scenario`` and nothing else.
"""

from drivers.memory.cloud import MemoryCloud
from drivers.memory.scenario import Scenario

__all__ = ["MemoryCloud", "Scenario"]
