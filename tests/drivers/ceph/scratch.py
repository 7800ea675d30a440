"""An image in the lab's own pool for one test, with hands on it that are not the driver's: Ceph's command line."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labs.openstack import CloudHandle
from whimbrel.model.endpoint import RbdEndpoint


class ScratchImage:
    """One image; ``name`` is unique on the lab."""

    def __init__(self, cloud: CloudHandle) -> None:
        self._cloud = cloud
        self.pool = cloud.pool
        self.name = f"whimbrel-test-{secrets.token_hex(6)}"

    def endpoint(
        self,
        *,
        snapshot: str | None = None,
        since: str | None = None,
        session: str | None = None,
        writable: bool = False,
    ) -> RbdEndpoint:
        """How the driver opens it."""
        return RbdEndpoint(
            pool=self.pool,
            image=self.name,
            snapshot=snapshot,
            since=since,
            conf=str(self._cloud.ceph_conf),
            user=self._cloud.ceph_user,
            session=session,
            writable=writable,
        )

    def rbd(self, *words: str) -> str:
        """Run ``rbd`` with the cloud's key."""
        access = ["-c", str(self._cloud.ceph_conf), "--id", self._cloud.ceph_user]
        done = subprocess.run(["rbd", *access, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"rbd {' '.join(words)}: {done.stderr}"
        return done.stdout

    @property
    def spec(self) -> str:
        """``pool/image``."""
        return f"{self.pool}/{self.name}"

    def create(self, size_bytes: int, *words: str) -> None:
        """Make it, all zeros, with 4 MiB objects unless told otherwise."""
        self.rbd("create", self.spec, "--size", f"{size_bytes}B", *words)

    def fill(self, content: bytes) -> None:
        """Make it anew with this content; ``rbd import`` keeps holes."""
        self.remove()
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            self.rbd("import", "--no-progress", file.name, self.spec)

    def snap(self, name: str) -> None:
        """Take a snapshot."""
        self.rbd("snap", "create", "--no-progress", f"{self.spec}@{name}")

    def read(self, snapshot: str = "") -> bytes:
        """All bytes, of the image or of a snapshot."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "out"
            self.rbd("export", "--no-progress", self.spec + (f"@{snapshot}" if snapshot else ""), str(path))
            return path.read_bytes()

    def allocated(self) -> int:
        """Bytes of the objects that exist."""
        return int(json.loads(self.rbd("du", "--format", "json", self.spec))["images"][-1]["used_size"])

    def remove(self) -> None:
        """Remove it with its snapshots; absent is fine."""
        if self.name in self.rbd("ls", self.pool).split():
            self.rbd("snap", "purge", "--no-progress", self.spec)
            if "migrating" in self.rbd("info", self.spec):
                self._wait_for_nobody()
                self.rbd("migration", "abort", "--no-progress", self.spec)
            else:
                self.rbd("rm", "--no-progress", self.spec)

    def _wait_for_nobody(self) -> None:
        """A client that was killed counts as one for half a minute."""
        deadline = time.monotonic() + 60
        while json.loads(self.rbd("status", "--format", "json", self.spec))["watchers"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@contextmanager
def scratch_image(cloud: CloudHandle) -> Iterator[ScratchImage]:
    """A name for an image, which is removed at the end."""
    image = ScratchImage(cloud)
    try:
        yield image
    finally:
        image.remove()
