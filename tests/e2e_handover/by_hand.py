"""Somebody who starts the servers of a guest by hand all the time, and a look at who runs on its image meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Self

import libvirt
from openstack.exceptions import SDKException

from labs.openstack import CloudHandle, OpenStackLab

EVERY_S = 0.3
LASTING = 3
"""Looks that must agree: a service may have the image open for a moment, and a start that fails too."""


class _Thread:
    """Repeats ``work`` inside the ``with``."""

    def __init__(self, name: str) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._end.wait(EVERY_S):
            self.work()

    def work(self) -> None:
        raise NotImplementedError


class Starting(_Thread):
    """Starts every server of this name in one cloud, as the tenant's member; ``unlocks`` takes locks away first."""

    def __init__(self, cloud: CloudHandle, name: str, *, unlocks: bool) -> None:
        super().__init__(f"by-hand-{cloud.name}")
        self._api: Any = cloud.connect(member=True).compute
        self._name = name
        self._unlocks = unlocks
        self.resting = threading.Event()
        self.tried: dict[str, int] = {}
        """Nova's answer -> how often: ``taken`` is a start that was accepted."""

    def work(self) -> None:
        if self.resting.is_set():
            return
        with suppress(SDKException):
            for server in [one for one in self._api.servers(details=False) if one.name == self._name]:
                if self._unlocks:
                    self._note("unlock", lambda server=server: self._api.unlock_server(server.id))  # type: ignore[misc]
                self._note("start", lambda server=server: self._api.start_server(server.id))  # type: ignore[misc]

    def _note(self, what: str, act: Callable[[], Any]) -> None:
        try:
            act()
            answer = f"{what}: taken"
        except SDKException as error:
            answer = f"{what}: locked" if "is locked" in str(error) else f"{what}: refused"
        self.tried[answer] = self.tried.get(answer, 0) + 1


class Running(_Thread):
    """In which clouds a hypervisor runs the guest, and which clients of Ceph have its image open, at each moment."""

    def __init__(self, lab: OpenStackLab, name: str, watchers: Callable[[], tuple[str, ...]]) -> None:
        super().__init__("who-runs")
        self._clouds = [lab.cloud(cloud) for cloud in ("a", "b")]
        self._here = lab.host_address
        self._name = name
        self._watchers = watchers
        self._in_a_row = {"runs": 0, "open": 0}
        self.doubles: list[str] = []
        self.looks = 0
        self.seen: set[str] = set()

    def work(self) -> None:
        runs = [cloud.name for cloud in self._clouds if self._runs(cloud)]
        # our own driver opens it too, from outside of the lab's namespace, for a mark or a look
        open_by = [address for address in self._watchers() if not address.startswith(f"{self._here}:")]
        self.looks += 1
        self.seen |= set(runs)
        for what, found in (("runs", runs), ("open", open_by)):
            self._in_a_row[what] = self._in_a_row[what] + 1 if len(found) > 1 else 0
            if self._in_a_row[what] >= LASTING:
                self.doubles.append(f"{what}: {found} at {time.time():.1f}")

    def _runs(self, cloud: CloudHandle) -> bool:
        """Whether a QEMU of that cloud has got past opening its disks."""
        with suppress(libvirt.libvirtError), closing(libvirt.open(cloud.libvirt_uri)) as host:
            return any(
                f"<nova:name>{self._name}</nova:name>" in domain.XMLDesc() and domain.isActive()
                for domain in host.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING)
            )
        return False
