"""Certificates of the tests' own authority."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    def write(self, other: Pair) -> None:
        """Put another pair in their place, as a renewal does."""
        for mine, theirs in ((self.key, other.key), (self.certificate, other.certificate)):
            partial = mine.with_suffix(".partial")
            partial.touch(0o600)
            partial.write_bytes(theirs.read_bytes())
            partial.replace(mine)


class Authority:
    """Signs certificates; `ca_file` is what its clients trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("the tests' authority")
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        made = _unsigned(self._name, self._name, self._key.public_key()).add_extension(constraints, critical=True)
        self.ca_file = directory / "authority.pem"
        self.ca_file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = ("127.0.0.1",),
        days: tuple[int, int] = (-1, 30),
        password: str = "",
    ) -> Pair:
        """A new pair for these hosts, valid from so many days from now to so many."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        made = _unsigned(_name(name), self._name, key.public_key(), days).add_extension(names, critical=False)
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        pair.certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            protection = serialization.BestAvailableEncryption(password.encode())
        pair.key.touch(0o600)
        pair.key.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection))
        return pair

    def trusted(self) -> ssl.SSLContext:
        """A client's settings."""
        return ssl.create_default_context(cafile=self.ca_file)


def _unsigned(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[int, int] = (-1, 30)
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer, name, key, x509.random_serial_number(), now + days[0] * DAY, now + days[1] * DAY
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
