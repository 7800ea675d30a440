"""TLS with certificates of certtool, against qemu-nbd and nbdkit: who is trusted, who is not, and full pipes."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.ports import lend_port
from tests.nbd.programs import run, running
from whimbrel.errors import AuthFailed, InvalidPlan, Unavailable, WhimbrelError
from whimbrel.model.endpoint import NbdEndpoint, TlsPaths
from whimbrel.nbd import list_exports, open_nbd

pytestmark = pytest.mark.interop
SIZE = 64 << 20


def certificate(directory: Path, name: str, ca: Path | None, *lines: str) -> None:
    """``name``-key.pem and ``name``-cert.pem in ``directory``, signed by the CA in ``ca`` or by itself."""
    template = directory / f"{name}.tmpl"
    template.write_text("\n".join([f"cn = {name}", "expiration_days = 2", *lines]) + "\n", encoding="ascii")
    key, cert = directory / f"{name}-key.pem", directory / f"{name}-cert.pem"
    run("certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1", "--outfile", str(key))
    signer = ["--generate-self-signed"]
    if ca is not None:
        signer = [
            "--generate-certificate",
            f"--load-ca-certificate={ca / 'ca-cert.pem'}",
            f"--load-ca-privkey={ca / 'ca-key.pem'}",
        ]
    run("certtool", *signer, f"--load-privkey={key}", f"--template={template}", "--outfile", str(cert))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories: ``server``, ``client`` (all files), ``guest`` (CA only), ``stranger`` (another CA's client)."""
    root = tmp_path_factory.mktemp("pki")
    for name in ("server", "client", "guest", "stranger"):
        (root / name).mkdir()
    certificate(root / "server", "ca", None, "ca", "cert_signing_key")
    certificate(root / "stranger", "ca", None, "ca", "cert_signing_key")
    names = ("dns_name = localhost", "dns_name = nbd.example", "ip_address = 127.0.0.1")
    certificate(root / "server", "server", root / "server", "tls_www_server", "signing_key", *names)
    certificate(root / "client", "client", root / "server", "tls_www_client", "signing_key")
    certificate(root / "stranger", "client", root / "stranger", "tls_www_client", "signing_key")
    for name in ("client", "guest"):
        shutil.copy(root / "server" / "ca-cert.pem", root / name / "ca-cert.pem")
    return root


@contextlib.contextmanager
def tls_server(pki: Path, directory: Path, program: str, *, verify: bool = True) -> Iterator[int]:
    """A server of 64 MiB that insists on TLS; its port."""
    port = lend_port()
    if program == "nbdkit":
        argv = ["nbdkit", "-f", "-p", str(port), "-i", "127.0.0.1", "--tls=require"]
        argv += [f"--tls-certificates={pki / 'server'}", *(["--tls-verify-peer"] if verify else []), "memory", "64M"]
    else:
        disk = directory / "tls.raw"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        peer = "yes" if verify else "no"
        credentials = f"tls-creds-x509,id=t,dir={pki / 'server'},endpoint=server,verify-peer={peer}"
        argv = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-b", "127.0.0.1", "-p", str(port)]
        argv += ["--object", credentials, "--tls-creds", "t", "-x", "vda", str(disk)]
    with running(*argv, port=port):
        yield port


def to(port: int, paths: Path | None, *, host: str = "127.0.0.1", name: str | None = None) -> NbdEndpoint:
    tls = TlsPaths(directory=str(paths), server_name=name) if paths else None
    return NbdEndpoint(host=host, port=port, export="vda", tls=tls, writable=True)


@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
def test_bytes_both_ways_with_full_pipes(pki: Path, short_dir: Path, program: str) -> None:
    rng = random.Random(5)
    data = rng.randbytes(20 << 20)
    with tls_server(pki, short_dir, program) as port:
        device = open_nbd(to(port, pki / "client"), timeout_s=60)
        lane = device.lane()
        lane.submit_write(32 << 20, memoryview(data))
        lane.reap()
        buffers = [bytearray(1 << 20) for _ in range(20)]
        for index, buffer in enumerate(buffers):
            lane.submit_write(index << 20, memoryview(data)[index << 20 : (index + 1) << 20])
            lane.submit_read((32 + index) << 20, memoryview(buffer))
        while lane.in_flight:
            lane.reap()
        assert b"".join(buffers) == data
        whole = bytearray(20 << 20)
        lane.flush()
        lane.submit_read(0, memoryview(whole))
        lane.reap()
        assert whole == data
        assert sum(extent.length for extent in device.extents()) == SIZE
        device.close()


@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
def test_who_is_trusted(pki: Path, short_dir: Path, program: str) -> None:
    with tls_server(pki, short_dir, program) as port:
        for endpoint in (to(port, pki / "client", host="localhost"), to(port, pki / "client", name="nbd.example")):
            open_nbd(endpoint, timeout_s=60).close()
        with pytest.raises(AuthFailed, match=r"not good for evil\.example"):
            open_nbd(to(port, pki / "client", name="evil.example"), timeout_s=60)
        with pytest.raises(AuthFailed, match="not good for"):
            open_nbd(to(port, pki / "stranger"), timeout_s=60)
        with pytest.raises(AuthFailed, match="insists on TLS"):
            open_nbd(to(port, None), timeout_s=60)
        with pytest.raises(WhimbrelError) as caught:
            open_nbd(to(port, pki / "guest"), timeout_s=60)
        # A server may also just hang up on a client without a certificate.
        assert isinstance(caught.value, AuthFailed | Unavailable)
        with pytest.raises(AuthFailed, match="cannot load"):
            open_nbd(to(port, short_dir), timeout_s=60)


@pytest.mark.parametrize("program", ["qemu-nbd", "nbdkit"])
def test_a_server_that_is_known_by_its_own_certificate(pki: Path, short_dir: Path, program: str) -> None:
    def known_by(certificate: Path) -> NbdEndpoint:
        endpoint = to(port, pki / "own", name="nbd.example")
        assert endpoint.tls is not None
        tls = endpoint.tls.model_copy(update={"server_certificate": certificate.read_text()})
        return endpoint.model_copy(update={"tls": tls})

    (pki / "own").mkdir(exist_ok=True)  # a directory without an authority
    for name in ("client-cert.pem", "client-key.pem"):
        shutil.copy(pki / "client" / name, pki / "own" / name)
    with tls_server(pki, short_dir, program) as port:
        open_nbd(known_by(pki / "server" / "server-cert.pem"), timeout_s=60).close()
        for other in (pki / "client" / "client-cert.pem", pki / "stranger" / "ca-cert.pem"):
            with pytest.raises(AuthFailed, match="not good for"):
                open_nbd(known_by(other), timeout_s=60)


def test_a_client_without_certificate_where_none_is_asked_for(pki: Path, short_dir: Path) -> None:
    with tls_server(pki, short_dir, "qemu-nbd", verify=False) as port:
        assert list_exports(to(port, pki / "guest"), timeout_s=60) == ["vda"]


def test_close_interrupts_a_tls_lane(pki: Path, short_dir: Path) -> None:
    port = lend_port()
    argv = ["nbdkit", "-f", "-p", str(port), "-i", "127.0.0.1", "--tls=require", "--filter=delay"]
    argv += [f"--tls-certificates={pki / 'server'}", "memory", "64M", "rdelay=30"]
    with running(*argv, port=port):
        device = open_nbd(to(port, pki / "guest"), timeout_s=60)
        lane = device.lane()
        lane.submit_read(0, memoryview(bytearray(4096)))
        timer = threading.Timer(0.3, lane.close)
        timer.start()
        with pytest.raises(Unavailable, match="closed by us"):
            lane.reap()
        timer.join()
        device.close()


def test_a_tls_server_that_stalls(pki: Path, short_dir: Path) -> None:
    port = lend_port()
    argv = ["nbdkit", "-f", "-p", str(port), "-i", "127.0.0.1", "--tls=require", "--filter=delay"]
    argv += [f"--tls-certificates={pki / 'server'}", "memory", "64M", "rdelay=20"]
    with running(*argv, port=port):
        device = open_nbd(to(port, pki / "guest"), timeout_s=60)
        lane = device.lane()
        lane.patience(2.0)
        lane.submit_read(0, memoryview(bytearray(4096)))
        with pytest.raises(Unavailable, match="stalls"):
            lane.reap()
        device.close()


def test_tls_over_a_unix_socket_needs_a_name(pki: Path, short_dir: Path) -> None:
    sock = short_dir / "t.sock"
    argv = ["nbdkit", "-f", f"--unix={sock}", "--tls=require", f"--tls-certificates={pki / 'server'}", "memory", "1M"]
    with running(*argv, unix=sock):
        bare = NbdEndpoint(unix_path=str(sock), tls=TlsPaths(directory=str(pki / "client")))
        with pytest.raises(InvalidPlan, match="name"):
            open_nbd(bare, timeout_s=60)
        named = TlsPaths(directory=str(pki / "client"), server_name="nbd.example")
        open_nbd(bare.model_copy(update={"tls": named}), timeout_s=60).close()
