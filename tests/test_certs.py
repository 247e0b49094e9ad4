"""Certificates for the webhook: TLS accepts them for the hosts named, and the key is guarded."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hami import certs
from hami.certs import Bundle
from hami.core.codec import WEBHOOK_LABEL
from hami.errors import ConfigError

NOW = datetime.now(UTC)


def shake_hands(bundle: Bundle, name: str, *, authority: Bundle | None = None) -> None:
    """A TLS handshake as an API server makes it; raises what the client meets."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(bundle.cert_file, bundle.key_file)
    client = ssl.create_default_context(cafile=str((authority or bundle).ca_file))
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def serve() -> None:
        with theirs:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except (ssl.SSLError, OSError):
                return  # the client refused, and says so itself

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["hami.kube-system.svc", "127.0.0.1", "::1"])
def test_every_host_named_is_accepted(tmp_path: Path, name: str) -> None:
    bundle = certs.create(tmp_path, ["hami.kube-system.svc", "127.0.0.1", "::1"], now=NOW)

    shake_hands(bundle, name)


def test_other_hosts_and_other_authorities_are_refused(tmp_path: Path) -> None:
    bundle = certs.create(tmp_path / "a", ["localhost"], now=NOW)
    other = certs.create(tmp_path / "b", ["localhost"], now=NOW)

    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(bundle, "example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(bundle, "localhost", authority=other)


def test_certificate_is_refused_after_its_time(tmp_path: Path) -> None:
    bundle = certs.create(tmp_path, ["localhost"], now=NOW - timedelta(days=31), days=30)

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(bundle, "localhost")


def test_key_is_for_its_owner_alone_and_fits_the_certificate(tmp_path: Path) -> None:
    bundle = certs.create(tmp_path / "new", ["localhost"], now=NOW)

    assert bundle.key_file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    key = load_pem_private_key(bundle.key_file.read_bytes(), password=None)
    certificate = x509.load_pem_x509_certificate(bundle.cert_file.read_bytes())
    assert certificate.public_key() == key.public_key()


def test_key_that_others_could_read_is_replaced_by_one_they_cannot(tmp_path: Path) -> None:
    (tmp_path / "tls.key").touch(mode=0o644)
    (tmp_path / ".tls.key.new").touch(mode=0o644)

    bundle = certs.create(tmp_path, ["localhost"], now=NOW)

    assert bundle.key_file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]


def test_authority_signs_nothing_below_itself_but_servers(tmp_path: Path) -> None:
    bundle = certs.create(tmp_path, ["localhost"], now=NOW)

    authority = x509.load_pem_x509_certificate(bundle.ca_file.read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)


def test_long_host_name_is_no_obstacle(tmp_path: Path) -> None:
    name = f"{'a' * 60}.{'b' * 60}.svc"

    shake_hands(certs.create(tmp_path, [name], now=NOW), name)


@pytest.mark.parametrize("hosts", [[], [""], ["höst"], ["a b"], ["a:443"]], ids=repr)
def test_no_host_or_an_odd_one_is_refused(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(ConfigError, match="host"):
        certs.create(tmp_path, hosts, now=NOW)


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        certs.create(tmp_path / "file", ["localhost"], now=NOW)


def test_webhook_configuration_calls_the_url_or_the_service(tmp_path: Path) -> None:
    bundle = certs.create(tmp_path, ["localhost"], now=NOW)
    assert base64.b64decode(bundle.ca_bundle) == bundle.ca_file.read_bytes()

    by_url = certs.webhook_configuration(ca_bundle=bundle.ca_bundle, url="https://x/webhook")
    by_service = certs.webhook_configuration(ca_bundle="x", service=("ns", "hami", 443))

    (webhook,) = by_url["webhooks"]
    assert webhook["clientConfig"] == {"caBundle": bundle.ca_bundle, "url": "https://x/webhook"}
    assert webhook["objectSelector"]["matchExpressions"][0]["key"] == WEBHOOK_LABEL
    (webhook,) = by_service["webhooks"]
    assert webhook["clientConfig"]["service"] == {
        "namespace": "ns", "name": "hami", "port": 443, "path": "/webhook",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="met neither"):
        certs.webhook_configuration(ca_bundle="x")
