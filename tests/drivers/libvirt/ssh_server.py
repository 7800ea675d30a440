"""A real sshd on a loopback port with keys of its own, and an ssh client that knows nothing but them."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from labs.ports import lend_port

SSHD = "/usr/sbin/sshd"


class SshServer:
    """Everything lies in ``directory``; neither the machine's sshd nor anybody's ``~/.ssh`` is used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("host", "user", "stranger", "other-host"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)], check=True
            )
        self.port = lend_port()
        (directory / "authorized").write_text((directory / "user.pub").read_text())
        self.trust("host")
        (directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nPidFile {directory}/sshd.pid\n"
            f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def trust(self, key: str) -> None:
        """Let the client take the server for the owner of this host key."""
        public = " ".join((self.directory / f"{key}.pub").read_text().split()[:2])
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}\n")

    def start(self) -> None:
        """Start, and wait until it listens."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's fixed place for privilege separation
        with (self.directory / "sshd.log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self.directory / "sshd.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        """End the listener; sessions that are open go on, as with any sshd."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def client(self, key: str = "user") -> Path:
        """A program that is ``ssh`` with this key and these known hosts: what ``~/.ssh/config`` does elsewhere."""
        config = self.directory / f"ssh_config-{key}"
        config.write_text(
            f"Host *\n  IdentityFile {self.directory}/{key}\n  IdentitiesOnly yes\n  BatchMode yes\n"
            f"  UserKnownHostsFile {self.directory}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        program = self.directory / f"ssh-{key}"
        program.write_text(f'#!/bin/sh\nexec ssh -F {shlex.quote(str(config))} "$@"\n')
        program.chmod(0o755)
        return program

    def uri(self, libvirt_socket: Path, key: str = "user", proxy: str = "netcat") -> str:
        """A libvirt address through this server."""
        user = "root" if os.geteuid() == 0 else os.environ["USER"]
        return (
            f"qemu+ssh://{user}@127.0.0.1:{self.port}/system?proxy={proxy}&socket={quote(str(libvirt_socket))}"
            f"&command={quote(str(self.client(key)))}"
        )
