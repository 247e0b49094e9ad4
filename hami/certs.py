"""Certificates for the webhook: a throw-away authority, one server certificate, and the manifest.

For clusters without a certificate manager, and for the sandbox. Keys never leave the directory they
are written to; the authority's key is not kept at all, so each call makes a new authority.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hami.core.codec import WEBHOOK_LABEL
from hami.errors import ConfigError

WEBHOOK_NAME = "vgpu.hami.io"
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Where the certificate files are."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    @property
    def ca_bundle(self) -> str:
        """The authority, as a webhook configuration wants it."""
        return base64.b64encode(self.ca_file.read_bytes()).decode()


def create(directory: Path, hosts: list[str], *, now: datetime, days: int = 365) -> Bundle:
    """Write ``ca.crt``, ``tls.crt`` and ``tls.key`` for these host names and addresses.

    Args:
        directory: Created if missing, readable by its owner only.
        hosts: Every name and IP address by which the server is called.
        now: Time of issue, with zone.
        days: How long they are valid.

    Raises:
        ConfigError: No host was given, one is no host, or the files cannot be written.
    """
    if not hosts:
        raise ConfigError("certificates: expected at least one host name or address, met none")
    names = [_san(host) for host in hosts]
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name, until = _name("hami webhook authority"), now + timedelta(days=days)
    since = now - timedelta(minutes=5)
    ca = (
        _builder(ca_name, ca_name, ca_key, since, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        _builder(_name(hosts[0][:64]), ca_name, key, since, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    bundle = Bundle(
        ca_file=directory / "ca.crt",
        cert_file=directory / "tls.crt",
        key_file=directory / "tls.key",
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(bundle.ca_file, ca.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(bundle.cert_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(
            bundle.key_file,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            0o600,
        )
    except OSError as error:
        raise ConfigError(f"certificates in {directory}: {error}") from error
    return bundle


def webhook_configuration(
    *, ca_bundle: str, url: str | None = None, service: tuple[str, str, int] | None = None
) -> dict[str, Any]:
    """The MutatingWebhookConfiguration for pods.

    Args:
        ca_bundle: The authority, base64.
        url: Where the webhook is reached from the API server, or else
        service: namespace, name and port of its Service.
    """
    client: dict[str, Any] = {"caBundle": ca_bundle}
    if url is not None:
        client["url"] = url
    elif service is not None:
        namespace, name, port = service
        client["service"] = {
            "namespace": namespace, "name": name, "port": port, "path": "/webhook",
        }  # fmt: skip
    else:
        raise ConfigError("webhook: expected a url or a service, met neither")
    not_ignored = {
        "matchExpressions": [{"key": WEBHOOK_LABEL, "operator": "NotIn", "values": ["ignore"]}]
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "hami-webhook"},
        "webhooks": [
            {
                "name": WEBHOOK_NAME,
                "admissionReviewVersions": ["v1", "v1beta1"],
                "clientConfig": client,
                "failurePolicy": "Ignore",
                "matchPolicy": "Equivalent",
                "reinvocationPolicy": "Never",
                "sideEffects": "None",
                "timeoutSeconds": 10,
                "namespaceSelector": not_ignored,
                "objectSelector": not_ignored,
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                        "scope": "*",
                    }
                ],
            }
        ],
    }


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    since: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS_NAME.fullmatch(host):
            raise ConfigError(
                f"certificates: expected a host name or address without port, met {host!r}"
            ) from None
        return x509.DNSName(host)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace the file as a whole, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
