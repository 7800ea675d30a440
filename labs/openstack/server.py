"""A lab server: the guest booted by Nova from a Cinder volume, and what it says over the network and on its disk."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labs.kvm.errors import LabError
from labs.kvm.records import ImageRecords, Record, parse_console, parse_disk
from labs.openstack.furnish import Address
from labs.openstack.guest_image import BASE_MIB
from labs.openstack.handle import CloudHandle

COMMAND_PORT = 7000
RECORDS_MIB = 1 + 8  # boot counter, and 2048 records of 4 KiB
POLL_S = 0.2


def command(ip: str, text: str, timeout_s: float = 60) -> str:
    """Run a guest command (docs/labs.md) over TCP and return its reply, retrying while the guest boots.

    Raises LabError after ``timeout_s``, or with the guest's own error.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((ip, COMMAND_PORT), timeout=5) as connection:
                connection.settimeout(max(1.0, deadline - time.monotonic()))
                connection.sendall(f"t {text}\n".encode())
                line = connection.makefile().readline()
            if line.startswith("t "):
                reply = line[2:].strip()
                if reply.startswith("ERROR"):
                    raise LabError(f"guest at {ip}: {reply}")
                return reply
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"guest at {ip} does not answer {text!r} on port {COMMAND_PORT}: {error}") from error
        if time.monotonic() > deadline:
            raise LabError(f"guest at {ip} gave no reply to {text!r}")
        time.sleep(POLL_S)


@dataclass(frozen=True)
class LabServer:
    """A running guest of the tenant: server, volumes and port were made together and go together."""

    cloud: CloudHandle
    id: str
    volume_id: str
    """The boot volume."""
    port_id: str
    address: Address
    pool: str
    data_volumes: tuple[str, ...] = ()

    def command(self, text: str, timeout_s: float = 60) -> str:
        """Run a guest command over the network; see ``command``."""
        return command(self.address.ip, text, timeout_s)

    def console_text(self) -> str:
        """Return all of the console since the last power on; "" before the first."""
        try:
            return self.cloud.console_log(self.id).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_console(self, pattern: str, timeout_s: float = 90) -> re.Match[str]:
        """Wait until ``pattern`` is on the console; return the match. Raises LabError with the console's end."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.console_text()
            if match := re.search(pattern, text, re.MULTILINE):
                return match
            if time.monotonic() > deadline:
                log = self.cloud.console_log(self.id)
                raise LabError(f"{pattern!r} not in {log} within {timeout_s:g} s\n{text[-800:]}")
            time.sleep(POLL_S)

    def acknowledged(self) -> list[Record]:
        """Return the records the guest reported as written since its last power on."""
        return parse_console(self.console_text())

    def records(self) -> ImageRecords:
        """Read the records from the boot volume's RBD image."""
        return records_on(self.cloud, self.pool, f"volume-{self.volume_id}")

    def remove(self) -> None:
        """Delete server, port and volumes, with their snapshots. What is gone already is fine."""
        connection = self.cloud.connect(member=True)
        with contextlib.closing(connection):
            compute, volumes = connection.compute, connection.block_storage
            if (server := compute.find_server(self.id)) is not None:
                compute.delete_server(server)
                compute.wait_for_delete(server, interval=0.5, wait=90)
            connection.network.delete_port(self.port_id)
            for volume_id in (self.volume_id, *self.data_volumes):
                if (volume := volumes.find_volume(volume_id)) is not None:
                    volumes.wait_for_status(volume, "available", ["error"], interval=0.5, wait=60)
                    volumes.delete_volume(volume.id, cascade=True)
                    volumes.wait_for_delete(volume, interval=0.5, wait=60)


def boot(
    cloud: CloudHandle,
    name: str,
    number: int,
    *,
    shared: bool = False,
    size_gib: int = 1,
    flavor: str = "lab.small",
    network: str | None = None,
    data_disks: int = 0,
    prepare: Callable[[str, str, int], None] | None = None,
) -> LabServer:
    """Boot the guest as the tenant's member from a new volume, with MAC and IP ``number``; returns when ACTIVE.

    The volumes lie in the shared pool or in the cloud's own; ``data_disks`` more of them are empty. ``prepare`` is
    called with pool, image and number of every volume (0: the boot volume) while nobody has it open. Raises what
    openstacksdk raises.
    """
    connection = cloud.connect(member=True)
    with contextlib.closing(connection):
        compute, volumes, networks = connection.compute, connection.block_storage, connection.network
        image = connection.image.find_image(cloud.image, ignore_missing=False)
        kind = cloud.shared_type if shared else cloud.volume_type
        volume = volumes.create_volume(size=size_gib, name=name, image_id=image.id, volume_type=kind)
        more = [
            volumes.create_volume(size=size_gib, name=f"{name}-{index}", volume_type=kind)
            for index in range(1, data_disks + 1)
        ]
        for one in (volume, *more):
            volumes.wait_for_status(one, "available", ["error"], interval=0.5, wait=90)
        pool = cloud.shared_pool if shared else cloud.pool
        if prepare is not None:
            for index, one in enumerate((volume, *more)):
                prepare(pool, f"volume-{one.id}", index)
        address = cloud.address(number)
        wire = networks.find_network(network or cloud.network, ignore_missing=False)
        port = networks.create_port(
            network_id=wire.id, name=name, mac_address=address.mac, fixed_ips=[{"ip_address": address.ip}]
        )
        disks = [
            {
                "uuid": one.id,
                "source_type": "volume",
                "destination_type": "volume",
                "boot_index": 0 if one is volume else -1,
            }
            for one in (volume, *more)
        ]
        server = compute.create_server(
            name=name,
            flavor_id=compute.find_flavor(flavor, ignore_missing=False).id,
            networks=[{"port": port.id}],
            block_device_mapping_v2=disks,
        )
        compute.wait_for_server(server, interval=0.5, wait=180)
        return LabServer(cloud, server.id, volume.id, port.id, address, pool, tuple(one.id for one in more))


def records_on(cloud: CloudHandle, pool: str, image: str) -> ImageRecords:
    """Read the guest's records from an RBD image (``image`` or ``image@snapshot``) of a pool the cloud sees."""
    with tempfile.TemporaryDirectory(prefix="wb-records-") as scratch:
        target = Path(scratch) / "head.raw"
        source = f"rbd:{pool}/{image}:id={cloud.ceph_user}:conf={cloud.ceph_conf}"
        span = ("bs=1M", f"skip={BASE_MIB}", f"count={BASE_MIB + RECORDS_MIB}")
        words = ["qemu-img", "dd", "-U", "-f", "raw", "-O", "raw", *span, f"if={source}", f"of={target}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"cannot read {pool}/{image}: {done.stderr.strip()}")
        return parse_disk(target.read_bytes())
