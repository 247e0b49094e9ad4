"""A cluster that is not ours, in the shape of the sandbox's API server.

``RemoteServer`` has the part of ``ApiServer`` by which tests seed and inspect; what it creates, it
removes. It writes through the API as anybody does, so a status takes a second request, and a pod is
made to terminate by being deleted. There are no faults and no counters: tests that need them are
marked ``faults``. Everything with a namespace goes into the one given, whatever it says itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hami.errors import KubeError
from hami.kube.client import KubeClient, connect
from hami.kube.resources import (
    EVENTS,
    NODES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    RESOURCE_QUOTAS,
    Resource,
)
from tests.support.cluster import Cluster

Object = dict[str, Any]

_RESOURCES: Final = {
    resource.plural: resource
    for resource in (EVENTS, NODES, PODS, POD_DISRUPTION_BUDGETS, RESOURCE_QUOTAS)
}
_BY_KIND: Final = {resource.kind: resource for resource in _RESOURCES.values()}
_FILE_KEYS: Final = ("certificate-authority", "client-certificate", "client-key")
_AT_ONCE: Final = {"gracePeriodSeconds": 0}
_NOT_FOUND: Final = 404


class RemoteStore:
    """Objects of a cluster, each call one or two requests that have been answered when it returns.

    Its client lives on a thread of its own, for the callers are on the event loop of the test.
    """

    def __init__(self, portal: BlockingPortal, client: KubeClient, *, namespace: str) -> None:
        self._portal = portal
        self._client = client
        self._namespace = namespace
        self._created: list[str] = []

    def create(self, obj: Object) -> Object:
        """The object as the server has it, status included; raises KubeError(409)."""
        resource = _BY_KIND[obj["kind"]]
        metadata = {**obj["metadata"]}
        if resource.namespaced:
            metadata["namespace"] = self._namespace
        terminating = metadata.pop("deletionTimestamp", None) is not None
        wanted = {**obj, "metadata": metadata}
        body = self._portal.call(self._client.post, self._path(resource), wanted)
        created = msgspec.json.decode(body, type=Object)
        path = self._path(resource, metadata["name"])
        self._created.append(path)
        if "status" in obj:
            created = self._put_status(path, created, obj["status"])
        if terminating:
            self._portal.call(self._client.delete, path)
            created = self.get(resource.plural, metadata["name"])
        return created

    def find(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """The object, or None."""
        try:
            return self.get(kind, name, namespace)
        except KubeError as error:
            if error.status != _NOT_FOUND:
                raise
            return None

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """The object; raises KubeError(404). The namespace is the cluster's, whatever is given."""
        body = self._portal.call(self._client.get, self._path(_RESOURCES[kind], name))
        return msgspec.json.decode(body, type=Object)

    def list(self, kind: str) -> list[Object]:
        """The objects of the cluster's namespace, or of the whole cluster where they have none."""
        body = self._portal.call(self._client.get, self._path(_RESOURCES[kind]))
        items: list[Object] = msgspec.json.decode(body, type=Object)["items"]
        return items

    def update(self, obj: Object) -> Object:
        """Replace the object and each part of its status, whatever others wrote meanwhile."""
        path = self._path(_BY_KIND[obj["kind"]], obj["metadata"]["name"])
        updated = self._put(path, obj)
        return self._put_status(path, updated, obj.get("status", {}))

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Remove the object at once; raises KubeError(404)."""
        path = self._path(_RESOURCES[kind], name)
        self._portal.call(self._client.delete, path, _AT_ONCE)

    def remove_created(self) -> None:
        """Remove what was created here and is still there, the latest first.

        One that cannot be removed does not keep the others: their errors come together at the end.
        """
        errors: list[KubeError] = []
        for path in reversed(self._created):
            try:
                self._portal.call(self._client.delete, path, _AT_ONCE)
            except KubeError as error:
                if error.status != _NOT_FOUND:
                    errors.append(error)
        if errors:
            raise ExceptionGroup("objects of the test are left in the cluster", errors)

    def _put_status(self, path: str, obj: Object, status: Object) -> Object:
        merged = {**obj.get("status", {}), **status}
        return self._put(f"{path}/status", {**obj, "status": merged})

    def _put(self, path: str, obj: Object) -> Object:
        metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
        body = self._portal.call(self._client.put, path, {**obj, "metadata": metadata})
        return msgspec.json.decode(body, type=Object)

    def _path(self, resource: Resource, name: str = "") -> str:
        return resource.path(self._namespace if resource.namespaced else "", name)


class RemoteServer:
    """The part of ``ApiServer`` that a cluster which is not ours can offer."""

    def __init__(self, store: RemoteStore, *, kubeconfig: Path) -> None:
        self.store = store
        self._kubeconfig = kubeconfig

    def kubeconfig(self) -> str:
        """The text of the cluster's kubeconfig, fit to be kept in another directory."""
        config = yaml.safe_load(self._kubeconfig.read_text())
        directory = self._kubeconfig.resolve().parent
        entries = [entry["cluster"] for entry in config["clusters"]]
        entries += [entry["user"] for entry in config["users"]]
        for entry in entries:
            for key in _FILE_KEYS:
                if key in entry:
                    entry[key] = os.fspath(directory / entry[key])
        return yaml.safe_dump(config)


@contextmanager
def remote_server(cluster: Cluster) -> Iterator[RemoteServer]:
    """The cluster while the block runs; what its store created is gone afterwards."""
    kubeconfig = cluster.settings.kubeconfig
    assert kubeconfig is not None, "the tests' cluster is one of a kubeconfig"
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connect(cluster.settings)) as client,
    ):
        store = RemoteStore(portal, client, namespace=cluster.namespace)
        try:
            yield RemoteServer(store, kubeconfig=Path(kubeconfig))
        finally:
            store.remove_created()
