"""The configuration file of a streaming server: paths and endpoints, no secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from whimbrel.errors import InvalidPlan
from whimbrel.model.endpoint import FileEndpoint, Frozen, MemoryEndpoint, NbdEndpoint, RbdEndpoint
from whimbrel.stream.protect.config import ProtectConfig

SourceEndpoint = NbdEndpoint | FileEndpoint | MemoryEndpoint | RbdEndpoint


class ListenAt(Frozen):
    """A place to listen: a unix socket, or a host with a port (0: any free one, told in the status)."""

    unix_path: str | None = None
    unix_mode: int = 0o600
    unix_client: tuple[int, int] | None = None
    """User and group of the only program that is to connect; ``unix_mode`` holds where they cannot be given access."""
    host: str | None = None
    port: int = Field(default=0, ge=0, le=65535)

    @model_validator(mode="after")
    def _exactly_one(self) -> ListenAt:
        if (self.unix_path is None) == (self.host is None):
            raise ValueError("either unix_path or host")
        return self


class HttpListen(Frozen):
    """Serve the disk read-only over HTTP, for librbd's live import (see ``http``)."""

    address: str = Field(min_length=1)
    """Of the interface that the readers reach; the storage network's."""
    port: int = Field(default=0, ge=0, le=65535)
    """0: any free one, told in the status. It stays the same as long as one of the stream's processes lives."""
    token_path: str
    """File of mode 0600 with the secret that is the URL's path; made by ``http.token.ensure_token``."""
    bulk_from: tuple[str, ...] = ()
    """Addresses whose connections are bulk from the start; ``self``: of this host. Others are told by what they do."""


class ServerTls(Frozen):
    """x509 files for clients over TCP: ``server-cert.pem server-key.pem ca-cert.pem`` in ``directory``."""

    directory: str
    verify_peer: bool = True


class PrefetchConfig(Frozen):
    """What the background fetches before the cold sweep. All off: the cold sweep alone."""

    history: tuple[str, ...] = ()
    """Traces of earlier runs of this disk (see docs/streaming.md), of equal weight."""
    ordered: bool = True
    """Fetch in the order of the history; off: it only teaches the correlation."""
    sequential: bool = True
    """Follow sequential and strided runs."""
    locality: bool = True
    """Fetch what lies near what the guest touched before the rest of the disk."""
    correlation: bool = True
    """Propose what followed in the history; needs one."""
    bootset: bool = True
    """Without a usable history: find in the disk's file systems what a boot will read, and fetch that."""


class StreamConfig(Frozen):
    """Everything that a server is started with."""

    target_path: str
    """A raw file (made if it is not there) or a block device."""
    map_stem: str
    """The map's files are ``<stem>.live``, ``<stem>.durable`` and ``<stem>.lock``; on a disk, not in tmpfs."""
    size_bytes: int = Field(gt=0)
    source: SourceEndpoint = Field(discriminator="kind")
    openers: dict[str, Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*:[a-z_]+$")]] = Field(default_factory=dict)
    """Kinds of endpoints that this program cannot open by itself -> ``module:function``, a driver's opener."""
    source_identity: str = Field(min_length=1)
    """What is streamed, e.g. cloud, volume and snapshot. A map made for another is refused."""
    listen: tuple[ListenAt, ...] = ()
    """Where the disk is served over NBD."""
    http: HttpListen | None = None
    control_path: str
    export: str = ""
    tls: ServerTls | None = None
    background: bool = True
    window_bytes: int | None = Field(default=None, gt=0)
    """Bytes of the background in flight; None: steered by the measured queue."""
    bandwidth_bytes_per_s: float | None = Field(default=None, gt=0)
    """Of the background."""
    source_timeout_s: float = Field(default=30.0, gt=0)
    source_fail_after_s: float | None = Field(default=None, gt=0)
    """After how long without the source a waiting request is given an error; None: never."""
    sync_every_s: float = Field(default=5.0, gt=0)
    """So much of the hydration, in time, may be lost when the host crashes."""
    governor_path: str | None = None
    """A file that all servers of this host name: they share ``host_limit_bytes_per_s``, demand first."""
    host_limit_bytes_per_s: float | None = Field(default=None, gt=0)
    protect: ProtectConfig = ProtectConfig()
    """What happens to the guest's writes besides: see ``protect``."""
    prefetch: PrefetchConfig = PrefetchConfig()
    trace_path: str | None = None
    """Record the guest's accesses into this file; one of the same disk is continued."""
    trace_max_bytes: int = Field(default=64 << 20, ge=4096)

    @model_validator(mode="after")
    def _limit_of_a_governor(self) -> StreamConfig:
        if (self.governor_path is None) != (self.host_limit_bytes_per_s is None):
            raise ValueError("governor_path and host_limit_bytes_per_s belong together")
        return self

    @model_validator(mode="after")
    def _one_way_in(self) -> StreamConfig:
        if bool(self.listen) == (self.http is not None):
            # A write over NBD would change what HTTP's readers take for the source.
            raise ValueError("either listen (NBD, read and write) or http (read-only)")
        if self.http is not None and self.source_fail_after_s is not None:
            raise ValueError("http never answers with an error, so there is no source_fail_after_s")
        if self.http is not None and self.protect.mode != "none":
            raise ValueError("nobody writes through http, so there is nothing to protect")
        return self


def read_config(path: Path) -> StreamConfig:
    """The configuration in a JSON file. Raises InvalidPlan."""
    try:
        return StreamConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as failed:
        raise InvalidPlan(f"the configuration {path} is not good: {failed}", cause=failed) from failed
