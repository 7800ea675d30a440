"""The contract harness of the OpenStack driver, on cloud "a" of the OpenStack lab."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu
from openstack.exceptions import ConflictException

from activities.patience import until_ready
from drivers.ceph import RbdImages, open_rbd
from drivers.openstack import OpenStackCloud
from labs.openstack import CloudHandle
from tests.contract.harness import Lack
from whimbrel.dataplane import register_opener
from whimbrel.model.vm import DiskFormat, VolumeRef
from whimbrel.ports.cloud import Cloud

PATIENCE_S = 120.0
LETTERS = "abcdefgh"
T = TypeVar("T")
register_opener("rbd", open_rbd)


class Patient:
    """Repeats a call that raises NotReady, as Temporal does."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if callable(found):
            return lambda *args, **kwargs: patiently(lambda: found(*args, **kwargs))
        return Patient(found) if type(found).__module__.startswith("drivers.openstack") else found


def patiently(call: Callable[[], T]) -> T:
    return until_ready(call, PATIENCE_S, 0.3)


class OpenStackHarness:
    """Implements tests.contract.harness.Harness. VMs are bare: firmware that finds nothing to boot.

    Images are cut to the suites' small sizes behind Cinder's back, which counts in GiB: so are those of adopted ones.
    """

    lacks = frozenset(
        {
            Lack.GUEST_STOPS,
            Lack.QUOTA,
            Lack.TWO_FORMATS,
            Lack.AGENT,
            Lack.FOREIGN_TOKENS,
            Lack.FOREIGN_JOBS,
            Lack.AUTOSTART,
            Lack.OWN_IDS,
        }
    )

    account = "-tenant-admin"
    """Of the lab's clouds.yaml: an admin in the tenant's project, whose tests do not run side by side."""

    def __init__(self, lab: CloudHandle) -> None:
        self.lab = lab
        self.pool = lab.volume_type
        self.network = lab.network
        self._clouds: list[OpenStackCloud] = []
        self._entry = lab.name + self.account
        self.conn = self._connect()
        self._before = self._ids()
        self.cloud: Cloud = self.fresh_cloud()

    def _connect(self) -> Any:
        import openstack

        loader = openstack.config.OpenStackConfig(config_files=[str(self.lab.clouds_yaml)], load_envvars=False)
        return openstack.connection.Connection(config=loader.get_one(self._entry))

    def bare_cloud(self) -> OpenStackCloud:
        """The driver itself, which raises NotReady."""
        made = OpenStackCloud(
            "lab", clouds_yaml_name=self._entry, config_file=self.lab.clouds_yaml, **self.way_to_the_bytes()
        )
        self._clouds.append(made)
        return made

    def fresh_cloud(self) -> Cloud:
        return cast(Cloud, Patient(self.bare_cloud()))

    def way_to_the_bytes(self) -> dict[str, Any]:
        """The driver's arguments for it."""
        return {
            "images": RbdImages(conf=str(self.lab.ceph_conf), user=self.lab.ceph_user),
            "pools": {self.lab.volume_type: self.lab.pool, self.lab.shared_type: self.lab.shared_pool},
        }

    def _ids(self) -> set[str]:
        mine = self.conn.current_project_id
        lists = (
            self.conn.compute.servers(),
            self.conn.block_storage.volumes(),
            self.conn.block_storage.snapshots(),
            self.conn.network.ports(project_id=mine),
        )
        return {thing.id for things in lists for thing in things}

    def end(self) -> None:
        """Remove what the test has left."""
        api = self.conn
        for server in list(api.compute.servers()):
            if server.id not in self._before:
                self._delete_server(server.id)
        for port in list(api.network.ports(project_id=api.current_project_id)):
            if port.id not in self._before:
                api.network.delete_port(port.id)
        for volume in list(api.block_storage.volumes()):
            if volume.id not in self._before:
                self._delete_volume(volume.id)
        for cloud in self._clouds:
            cloud.close()
        self.conn.close()

    def _delete_server(self, server: str) -> None:
        self.conn.compute.delete_server(server)
        self._until(lambda: self.conn.compute.find_server(server, ignore_missing=True) is None)

    def _delete_volume(self, volume: str) -> None:
        self.conn.block_storage.delete_volume(volume, cascade=True)
        self._until(lambda: self.conn.block_storage.find_volume(volume, ignore_missing=True) is None)

    @staticmethod
    def _until(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not true():
            assert time.monotonic() < deadline, "the lab does not do what it was asked for"
            time.sleep(0.2)

    # --- VMs

    def volume_type(self, disk_format: DiskFormat) -> str:
        """Of a disk that is to have this format; all are raw."""
        return self.pool

    def volume_metadata(self, size_bytes: int) -> dict[str, str]:
        """Of the volumes of such VMs."""
        return {}

    def make_vm(
        self, disks: Sequence[tuple[int, DiskFormat]], *, running: bool = False, name: str | None = None
    ) -> str:
        vm, api = name or f"bare-{secrets.token_hex(4)}", self.conn
        volumes = []
        for index, (size, disk_format) in enumerate(disks):
            made = api.block_storage.create_volume(
                name=f"{vm}-vd{LETTERS[index]}",
                size=1,
                volume_type=self.volume_type(disk_format),
                metadata=self.volume_metadata(size),
            )
            volumes.append((made.id, size))
        for volume, size in volumes:
            self._until(lambda volume=volume: api.block_storage.get_volume(volume).status == "available")  # type: ignore[misc]
            self.rbd("resize", "--allow-shrink", "--no-progress", "--size", f"{size}B", self._image(volume))
        api.block_storage.set_volume_image_metadata(volumes[0][0], os_shutdown_timeout="1")
        api.block_storage.set_volume_bootable_status(volumes[0][0], True)
        network = api.network.find_network(self.network)
        mac = "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        port = api.network.create_port(network_id=network.id, mac_address=mac)
        server = api.compute.create_server(
            name=vm,
            flavor_id=api.compute.find_flavor(self.lab.flavors[0]).id,
            networks=[{"port": port.id}],
            block_device_mapping=[
                {
                    "boot_index": 0 if index == 0 else -1,
                    "uuid": volume,
                    "source_type": "volume",
                    "destination_type": "volume",
                }
                for index, (volume, _) in enumerate(volumes)
            ],
        )
        self._until(lambda: api.compute.get_server(server.id).status in {"ACTIVE", "ERROR"})
        now = api.compute.get_server(server.id)
        assert now.status == "ACTIVE", now.fault
        if not running:
            api.compute.stop_server(server.id)
            self._until(lambda: api.compute.get_server(server.id).status == "SHUTOFF")
        return str(server.id)

    def start_by_hand(self, ref: str) -> bool:
        """As the tenant's member: an administrator would override a lock."""
        owner = self.lab.connect(member=True)
        try:
            owner.compute.start_server(self._server(ref))
        except ConflictException:
            return False
        finally:
            owner.close()
        self._until(lambda: self.conn.compute.get_server(self._server(ref)).task_state is None)
        return bool(self.conn.compute.get_server(self._server(ref)).vm_state == "active")

    def remove_vm(self, ref: str) -> None:
        server = self._server(ref)
        volumes = [volume.id for volume in self.conn.compute.get_server(server).attached_volumes]
        ports = [port.id for port in self.conn.network.ports(device_id=server)]
        self._delete_server(server)
        for port in ports:
            self.conn.network.delete_port(port)
        for volume in volumes:
            self._delete_volume(volume)

    def _server(self, ref: str) -> str:
        for server in self.conn.compute.servers():
            if ref in {server.id, server.metadata.get("whimbrel_ref")}:
                return str(server.id)
        raise KeyError(ref)

    # --- bytes

    def rbd(self, *words: str) -> str:
        access = ["-c", str(self.lab.ceph_conf), "--id", self.lab.ceph_user]
        done = subprocess.run(["rbd", *access, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"rbd {' '.join(words)}: {done.stderr}"
        return done.stdout

    def _image(self, volume: str) -> str:
        shared = self.conn.block_storage.get_volume(volume).volume_type == self.lab.shared_type
        return f"{self.lab.shared_pool if shared else self.lab.pool}/volume-{volume}"

    def guest_write(self, ref: str, disk: str, offset: int, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(prefix="wbos") as pattern:
            pattern.write(data)
            pattern.flush()
            self._qemu_io(ref, disk, f"write -s {pattern.name} {offset} {len(data)}")

    def _qemu_io(self, ref: str, disk: str, command: str) -> None:
        with closing(libvirt.open(self.lab.libvirt_uri)) as host:
            domain = host.lookupByUUIDString(self._server(ref))
            alias = next(
                str(node.find("alias").get("name"))  # type: ignore[union-attr]
                for node in ET.fromstring(domain.XMLDesc()).findall("devices/disk")
                if node.find("target").get("dev") == disk  # type: ignore[union-attr]
            )
            asked = {"execute": "query-block"}
            devices = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(asked), 0))["return"]
            qdev = next(device["qdev"] for device in devices if alias in device.get("qdev", ""))
            line = {"command-line": f'qemu-io -d {qdev} "{command}"'}
            run = {"execute": "human-monitor-command", "arguments": line}
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(run), 0))
            assert answer.get("return") == "", answer

    def read_disk(self, ref: str, disk: str) -> bytes:
        server = self.conn.compute.get_server(self._server(ref))
        if server.status == "ACTIVE":
            self._qemu_io(ref, disk, "flush")
        attached = self.conn.compute.volume_attachments(server.id)
        return self._read(next(entry.volume_id for entry in attached if entry.device == f"/dev/{disk}"))

    def read_volume(self, volume: VolumeRef) -> bytes:
        return self._read(volume.location)

    def _read(self, volume: str) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "out"
            self.rbd("export", "--no-progress", self._image(volume), str(path))
            return path.read_bytes()

    # --- tracking

    def damage_tracking(self, ref: str) -> None:
        """Remove the snapshots that are the tokens, as an operator who tidies up would."""
        server = self._server(ref)
        for attached in self.conn.compute.volume_attachments(server):
            for snapshot in list(self.conn.block_storage.snapshots(volume_id=attached.volume_id)):
                self.conn.block_storage.delete_snapshot(snapshot.id)
            self._until(
                lambda volume=attached.volume_id: not list(self.conn.block_storage.snapshots(volume_id=volume))  # type: ignore[misc]
            )
        self.conn.compute.stop_server(server)
        self._until(lambda: self.conn.compute.get_server(server).status == "SHUTOFF")

    def add_foreign_token(self, ref: str) -> str:
        raise NotImplementedError(Lack.FOREIGN_TOKENS)

    def foreign_tokens(self, ref: str) -> Collection[str]:
        raise NotImplementedError(Lack.FOREIGN_TOKENS)

    @contextmanager
    def foreign_job(self, ref: str) -> Iterator[None]:
        raise NotImplementedError(Lack.FOREIGN_JOBS)
        yield

    def set_agent(self, ref: str, *, hostname: str) -> None:
        raise NotImplementedError(Lack.AGENT)
