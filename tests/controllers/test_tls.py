"""The server over TLS: with the API server's webhook calls, and with certificates that change."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from hami.config import Settings
from hami.controllers.certificates import pair_of
from hami.errors import ConfigError
from hami.sandbox.apiserver import ApiServer
from tests.support.cluster import sandbox_only
from tests.support.controller import Controller, pod_object, quota_object, running
from tests.support.kube import until

Configure = Callable[..., Settings]


class Issuer:
    """An authority whose certificates go to the files of the controller's settings."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.cert_file = directory / "tls.crt"
        self.key_file = directory / "tls.key"
        self.write()

    @property
    def files(self) -> dict[str, Any]:
        return {
            "cert_file": str(self.cert_file),
            "key_file": str(self.key_file),
            "cert_poll_seconds": 0.02,
        }

    def write(self) -> None:
        """A new pair, which the authority has signed."""
        pair = self.authority.issue_cert("127.0.0.1", "localhost")
        self.key_file.write_bytes(pair.private_key_pem.bytes())
        self.cert_file.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


async def serial_of(controller: Controller) -> str:
    """Which certificate a new connection gets."""
    assert isinstance(controller.tls, ssl.SSLContext)
    port = int(controller.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=controller.tls)
    serial: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return serial


def register_webhook(server: ApiServer, controller: Controller, issuer: Issuer) -> None:
    """Have the API server ask the controller about each new pod."""
    authority = base64.b64encode(issuer.authority.cert_pem.bytes()).decode()
    new_pods = {
        "operations": ["CREATE"],
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["pods"],
    }
    server.store.create(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "hami"},
            "webhooks": [
                {
                    "name": "vgpu.hami.io",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "clientConfig": {"url": f"{controller.url}/webhook", "caBundle": authority},
                    "rules": [new_pods],
                }
            ],
        }
    )


async def create(
    server: ApiServer, controller: Controller, pod: dict[str, Any], namespace: str = "default"
) -> Any:
    """What the API server answers to the new pod."""
    path = f"{server.url}/api/v1/namespaces/{namespace}/pods"
    async with controller.session.post(path, json=pod) as response:
        return await response.json()


@sandbox_only("needs an API server that reaches the controller on this machine's loopback")
async def test_api_server_has_pods_admitted_over_tls(
    server: ApiServer, configure: Configure, issuer: Issuer
) -> None:
    async with running(configure(**issuer.files), authority=issuer.trust()) as controller:
        register_webhook(server, controller, issuer)
        pod = pod_object("p", gpus=1, memory=None)
        del pod["spec"]["schedulerName"]
        created = await create(server, controller, pod)
        refused = await create(server, controller, pod_object("bad", memory=-5))

    assert created["spec"]["schedulerName"] == "hami-scheduler"
    limits = created["spec"]["containers"][0]["resources"]
    assert (
        limits["limits"]
        == limits["requests"]
        == {
            "nvidia.com/gpu": "1",
            "nvidia.com/gpucores": "100",
        }
    )
    assert "vgpu.hami.io" in refused["message"]
    assert "nvidia.com/gpumem" in refused["message"]


@sandbox_only("needs an API server that reaches the controller on this machine's loopback")
async def test_pod_that_its_namespace_has_no_room_for_is_not_even_created(
    server: ApiServer, configure: Configure, issuer: Issuer
) -> None:
    """What is bound counts, and whole devices count as all of the compute that they are given."""
    elsewhere = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}
    server.store.create(elsewhere)
    server.store.create(quota_object("gpus", memory=100_000, cores=120))

    async with running(configure(**issuer.files), authority=issuer.trust()) as controller:
        register_webhook(server, controller, issuer)
        first = await create(server, controller, pod_object("first", memory=30_000, cores=30))
        assert await controller.bind(first, "n0") == ""
        memory = await create(server, controller, pod_object("a", memory=80_000))
        whole = await create(server, controller, pod_object("b", memory=None))
        pod = pod_object("c", memory=80_000, namespace="elsewhere")
        elsewhere = await create(server, controller, pod, "elsewhere")
        fits = await create(server, controller, pod_object("d", memory=20_000))
        denied = await controller.value("hami_admissions_total", result="denied")

    refusal = 'admission webhook "vgpu.hami.io" denied the request: exceeding resource quota: quota'
    assert memory["message"] == (
        f"{refusal} default/gpus: limits.nvidia.com/gpumem: needs 80000 MiB, 70000 of 100000 left"
    )
    assert (memory["code"], memory["reason"]) == (403, "Forbidden")
    assert whole["message"] == (
        f"{refusal} default/gpus: limits.nvidia.com/gpucores: needs 100%, 90 of 120 left"
    )
    assert elsewhere["kind"] == fits["kind"] == "Pod"
    assert denied == 2


async def test_new_certificate_is_used_without_a_restart(
    configure: Configure, issuer: Issuer
) -> None:
    async with running(configure(**issuer.files), authority=issuer.trust()) as controller:
        before = await serial_of(controller)
        issuer.write()

        async def renewed() -> bool:
            return await serial_of(controller) != before

        await until(renewed)
        assert await controller.value("hami_certificate_loads_total", result="loaded") == 1


@pytest.mark.parametrize("damage", ["no certificate", "another key", "gone"])
async def test_bad_pair_leaves_the_old_one(
    configure: Configure, issuer: Issuer, tmp_path: Path, damage: str
) -> None:
    async with running(configure(**issuer.files), authority=issuer.trust()) as controller:
        before = await serial_of(controller)
        match damage:
            case "no certificate":
                issuer.cert_file.write_text("hello")
            case "another key":
                issuer.key_file.write_bytes(
                    trustme.CA().issue_cert("other").private_key_pem.bytes()
                )
            case "gone":
                issuer.cert_file.unlink()

        async def refused() -> bool:
            return await controller.value("hami_certificate_loads_total", result="refused") > 0

        await until(refused)
        assert await serial_of(controller) == before
        issuer.write()

        async def renewed() -> bool:
            return await serial_of(controller) != before

        await until(renewed)


async def test_unusable_certificate_at_start_is_a_settings_error(
    configure: Configure, issuer: Issuer
) -> None:
    issuer.cert_file.write_text("hello")

    with pytest.raises(ExceptionGroup) as refusal:
        async with running(configure(**issuer.files)):
            pass

    assert refusal.group_contains(ConfigError, match="cert_file")


def test_half_a_pair_is_a_settings_error(configure: Configure, issuer: Issuer) -> None:
    settings = configure(cert_file=str(issuer.cert_file))

    with pytest.raises(ConfigError, match="both or neither"):
        pair_of(settings.controller)
