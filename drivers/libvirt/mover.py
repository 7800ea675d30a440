"""Mover sessions: images of a stopped VM, or target volumes, served over NBD by a paused QEMU of their own.

A session is a transient domain named by its key. It survives the death of a worker, is found again by its name, and
its image locks keep everybody else (also a start of the VM) away from the disks meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from drivers.libvirt import domain_xml, qmp, tag
from drivers.libvirt.connection import Connection
from drivers.libvirt.errors import translate
from drivers.libvirt.reach import Address, Reach
from drivers.libvirt.session_xml import Cache, SessionDisk, alias, session_xml
from whimbrel.errors import Conflict, NotReady, Unavailable
from whimbrel.exclusion import alone

MAX_CONNECTIONS = 64
STOP_TIMEOUT_S = 60.0
TLS_OBJECT = "whimbrel-tls"


@dataclass(frozen=True, slots=True)
class Session:
    """A session that serves: its domain, where it listens, and the images by disk key."""

    domain: Any
    address: Address
    nodes: Mapping[str, qmp.Node]
    opened_at: datetime


class Mover:
    """Opens, adopts and ends mover sessions on one host."""

    def __init__(self, connection: Connection, reach: Reach) -> None:
        self._connection = connection
        self._reach = reach

    def open(
        self, key: str, disks: Sequence[SessionDisk], *, migration: str, writable: bool, note: str = ""
    ) -> Session:
        """Hold ``disks`` open, with an NBD server that serves nothing yet (see ``export``).

        A session of this name is adopted if it holds these disks in this way for the same purpose (``note``), else
        it is ended and made anew. Raises Conflict when an image is in use, or the name belongs to a domain that is
        not this session.
        """
        with (
            alone(self._connection.uri, "session", key),
            self._connection.using(f"opening mover session {key}") as conn,
        ):
            domain = self._find(conn, key)
            if domain is not None and self._unfit(domain, disks, migration=migration, writable=writable, note=note):
                self._end(domain)
                domain = None
            if domain is None:
                self._refuse_second_writer(conn, key, disks, writable=writable)
                domain = self._create(conn, key, disks, migration=migration, writable=writable, note=note)
                try:
                    self._refuse_second_writer(conn, key, disks, writable=writable)
                except Conflict:
                    self._end(domain)
                    raise
            return _session(domain, self._serve(domain, key))

    def find(self, key: str) -> Session | None:
        """The session of this name as it is, if there is one. Raises Conflict for a domain that is no session."""
        with self._connection.using(f"looking for mover session {key}") as conn:
            domain = self._find(conn, key)
            if domain is None:
                return None
            return _session(domain, Address.parse(mark_of(domain).get("address", "")))

    def export(self, session: Session, bitmaps: Mapping[str, Sequence[str]], *, writable: bool) -> None:
        """Serve the disks that ``bitmaps`` names, each with these bitmaps; those that are served already stay so."""
        with self._connection.using("exporting disks"):
            present = {export["id"] for export in qmp.execute(session.domain, "query-block-exports")}
            for key, names in bitmaps.items():
                if export_id(key) in present:
                    continue
                arguments: dict[str, Any] = {"bitmaps": list(names)} if names else {}
                try:
                    qmp.execute(
                        session.domain,
                        "block-export-add",
                        type="nbd",
                        id=export_id(key),
                        name=key,
                        node_name=session.nodes[key].name,
                        writable=writable,
                        **arguments,
                    )
                except qmp.QmpError as error:
                    if "already in use" not in error.message:
                        raise Conflict(f"disk {key} cannot be exported: {error.message}", cause=error) from error

    def close(self, key: str, *, migration: str | None = None) -> bool:
        """Stop serving and end the session so that all it wrote is in the images; False if there was none.

        Raises Conflict for a domain that is not a session (of ``migration``, if given), NotReady if it lingers.
        """
        with (
            alone(self._connection.uri, "session", key),
            self._connection.using(f"closing mover session {key}") as conn,
        ):
            domain = self._find(conn, key)
            if domain is None:
                for address in self._reach.candidates(key):
                    self._reach.clean(address)  # a QEMU that was killed leaves its socket
                return False
            mark = mark_of(domain)
            if migration is not None and mark.get("migration") != migration:
                raise Conflict(f"mover session {key} belongs to another migration", owner=mark.get("migration"))
            self._end(domain)
        return True

    def sessions(self, migration: str | None = None, *, note: str | None = None) -> list[str]:
        """Names of the sessions that exist (of ``migration``, and for this purpose, if given)."""
        with self._connection.using("listing mover sessions") as conn:
            return sorted(
                name
                for name, mark, _ in _marked(conn)
                if migration in {None, mark.get("migration")} and note in {None, mark.get("note", "")}
            )

    def holding(self, location: str, *, migration: str) -> Any | None:
        """The domain of this migration's session that has the image at ``location`` open."""
        with self._connection.using("looking for a mover session") as conn:
            for name, mark, xml in _marked(conn):
                held = {disk.location for disk in _held(xml)}
                if mark.get("migration") == migration and location in held:
                    return self._find(conn, name)
        return None

    def _refuse_second_writer(self, conn: Any, key: str, disks: Sequence[SessionDisk], *, writable: bool) -> None:
        """QEMU's locks keep two sessions from one qcow2, but ``share-rw`` lets both open the same raw image.

        Nor is an image written that is the base of somebody's overlay; it may be read.
        Looked at before and after a session is made: of two that are made at once, none or one stays.
        """
        wanted = {disk.location for disk in disks}
        below = {disk.base.location for disk in disks if disk.base is not None}
        for name, mark, xml in _marked(conn):
            if name == key or mark.get("mode") != "write":
                continue
            held = _held(xml)
            both = (wanted | below) & {disk.location for disk in held}
            if writable:
                both |= wanted & {path for disk in held for path in disk.chain}
            if both:
                raise Conflict(f"{min(both)} is being written by mover session {name}", session=name)

    def _find(self, conn: Any, key: str) -> Any | None:
        try:
            domain = conn.lookupByName(key)
            mark = tag.find(domain_xml.parse(domain.XMLDesc()))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        if mark is None or mark.get("role") != "session":
            raise Conflict(f"a domain named {key} exists and is not a mover session")
        return domain

    def _unfit(self, domain: Any, disks: Sequence[SessionDisk], *, migration: str, writable: bool, note: str) -> bool:
        """Whether an existing session is of another make (an earlier attempt with other disks); it is ended then."""
        mark = mark_of(domain)
        if mark.get("migration") != migration:
            raise Conflict(f"mover session {domain.name()} belongs to another migration", owner=mark.get("migration"))
        if (mark.get("mode") == "write") != writable or mark.get("note", "") != note:
            return True
        held = _held(domain_xml.parse(domain.XMLDesc()))
        have = dict(zip(mark.get("disks", "").split(), (disk.location for disk in held), strict=False))
        return any(have.get(disk.key) != disk.location for disk in disks)

    def _create(
        self, conn: Any, key: str, disks: Sequence[SessionDisk], *, migration: str, writable: bool, note: str
    ) -> Any:
        first = next(self._reach.candidates(key))
        caches: tuple[Cache, ...] = ("none", "writeback")
        for cache in caches:
            xml = session_xml(
                key, disks, migration=migration, writable=writable, address=first.text, cache=cache, note=note
            )
            try:
                return conn.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
            except libvirt.libvirtError as error:
                text = str(error)
                if "already exists" in text or "already active" in text:
                    # Another attempt of the same step was faster.
                    domain = self._find(conn, key)
                    if domain is not None:
                        return domain
                    raise
                if cache == "none" and "O_DIRECT" in text:
                    continue
                raise translate(error, f"opening the disks of mover session {key}") from error
        raise AssertionError("unreachable")

    def _serve(self, domain: Any, key: str) -> Address:
        """Have the NBD server run, and say where. The address is written to the mark before it is tried."""
        mark = mark_of(domain)
        recorded = Address.parse(mark.get("address", ""))
        if self._reach.transport == "tls":
            with suppress(qmp.QmpError):  # it is there already
                qmp.execute(
                    domain,
                    "object-add",
                    qom_type="tls-creds-x509",
                    id=TLS_OBJECT,
                    dir=self._reach.server_tls_dir,
                    endpoint="server",
                    verify_peer=True,
                )
        others = [address for address in self._reach.candidates(key) if address != recorded]
        for address in (recorded, *others):
            self._reach.prepare(address)
            if mark.get("address") != address.text:
                mark.set("address", address.text)
                write_mark(domain, mark)
            try:
                qmp.execute(domain, "nbd-server-start", **self._server(address))
            except qmp.QmpError as error:
                if "already running" in error.message:
                    return address
                if "in use" in error.message:
                    continue
                raise Unavailable(f"no NBD server for mover session {key}: {error.message}", cause=error) from error
            return address
        raise Unavailable(f"no free port for mover session {key}", tried=1 + len(others))

    def _server(self, address: Address) -> dict[str, Any]:
        if address.unix_path is not None:
            where: dict[str, Any] = {"type": "unix", "data": {"path": address.unix_path}}
        else:
            where = {"type": "inet", "data": {"host": address.host, "port": str(address.port)}}
        server: dict[str, Any] = {"addr": where, "max_connections": MAX_CONNECTIONS}
        if self._reach.transport == "tls":
            server["tls_creds"] = TLS_OBJECT
        return server

    def _end(self, domain: Any) -> None:
        """Stop the server (clients are cut off, requests in flight finish) and let QEMU leave by itself.

        Only a QEMU that leaves by itself writes qcow2 metadata and bitmaps out, so it is never killed here.
        """
        with suppress(libvirt.libvirtError):
            self._reach.clean(Address.parse(mark_of(domain).get("address", "")))
        with suppress(qmp.QmpError, libvirt.libvirtError):
            qmp.execute(domain, "nbd-server-stop")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
                return
            except libvirt.libvirtError as error:
                code = error.get_error_code()
                if code in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}:
                    return
                if code not in {libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_SYSTEM_ERROR}:
                    raise
            time.sleep(0.5)
        raise NotReady("the mover session has not ended yet: it still writes", session=domain.name())


def _marked(conn: Any) -> Iterator[tuple[str, ET.Element, ET.Element]]:
    """Name, mark and XML of every mover session that runs."""
    for domain in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with suppress(libvirt.libvirtError):
            xml = domain_xml.parse(domain.XMLDesc())
            mark = tag.find(xml)
            if mark is not None and mark.get("role") == "session":
                yield domain.name(), mark, xml


def _held(xml: ET.Element) -> list[domain_xml.XmlDisk]:
    """Disks of a session, without the drives that only guard a base."""
    return [disk for disk in domain_xml.disks(xml) if disk.device == "disk"]


def _session(domain: Any, address: Address) -> Session:
    by_alias = qmp.disk_nodes(domain)
    mark = mark_of(domain)
    nodes = {name: by_alias[alias(index)] for index, name in enumerate(mark.get("disks", "").split())}
    return Session(domain, address, nodes, datetime.fromisoformat(mark.get("opened", "")))


def mark_of(domain: Any) -> ET.Element:
    """Our mark on a session. Raises libvirtError."""
    mark = tag.find(domain_xml.parse(domain.XMLDesc()))
    return mark if mark is not None else ET.Element(tag.ELEMENT)


def write_mark(domain: Any, mark: ET.Element) -> None:
    """Put a changed mark on a session that runs. Raises libvirtError."""
    # libvirt itself puts it into the namespace.
    plain = ET.tostring(ET.Element(mark.tag.rpartition("}")[2], mark.attrib), encoding="unicode")
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, plain, tag.PREFIX, tag.NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE
    )


def export_id(key: str) -> str:
    """Id of the export of a session's disk."""
    return f"whimbrel-{key}"
