"""The lab's own certificate authority: server and client certificates for NBD and libvirt over TLS.

QEMU and libvirt want the same certificates under different file names, so they are written once for each:
``server`` and ``client`` in QEMU's naming (ca-cert.pem, server-cert.pem, ...), ``libvirt`` in libvirt's.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=365)
CLOCK_SKEW = datetime.timedelta(hours=1)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """A certificate authority that lives as long as the lab is being set up; its key is never written."""

    def __init__(self, common_name: str = "Whimbrel lab CA") -> None:
        self._name = common_name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (
            _builder(common_name, common_name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, common_name: str) -> tuple[bytes, bytes]:
        """Return (certificate, private key) as PEM for a peer on this machine, good as server and as client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            _builder(common_name, self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(usage, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), pem

    def pem(self) -> bytes:
        """Return the authority's own certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        target = directory / name
        target.touch(mode=0o600)
        target.write_bytes(content)


def ensure_certificates(directory: Path) -> None:
    """Write ``server``, ``client`` and ``libvirt`` under ``directory`` unless a complete set is there already."""
    done = directory / "complete"
    if done.exists():
        return
    authority = Authority()
    ca = authority.pem()
    server, server_key = authority.issue("whimbrel-lab-server")
    client, client_key = authority.issue("whimbrel-lab-client")
    qemu_server = {"ca-cert.pem": ca, "server-cert.pem": server, "server-key.pem": server_key}
    qemu_client = {"ca-cert.pem": ca, "client-cert.pem": client, "client-key.pem": client_key}
    # QEMU is a client too when a VM's disk is an NBD volume.
    _write(directory / "server", qemu_server | qemu_client)
    _write(directory / "client", qemu_client)
    _write(directory / "libvirt", {"cacert.pem": ca, "clientcert.pem": client, "clientkey.pem": client_key})
    done.touch()
