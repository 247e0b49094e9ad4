"""An API server for benchmarks, in a process of its own: fast, patient, and nothing more.

``python -m tests.bench.standin --nodes 5000 --pods 30000 --pending 1000``

Prints its address and serves until its standard input ends. Every request but lists, watches and
the benchmarks' own is answered after ``--delay`` seconds, as an API server's would be by way of
etcd. It knows optimistic locking, watches, merge patches and bindings, and neither validation,
selectors nor admission: the sandbox's server has those, and is slower.

It plays kubelet and agent as well: a pod that is bound to a node has its devices after
``--allocate`` seconds. ``POST /bench/storm {"nodes": 500, "pods": 500}`` begins so many updates of
nodes and pods a second, ``POST /bench/counts`` tells the requests so far.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
from collections import Counter, deque
from typing import Any, Final

import msgspec
from aiohttp import web

from hami.core import codec
from hami.kube.resources import resource_of
from hami.sandbox.apiserver.patching import apply_json_patch, apply_merge_patch
from tests.bench import crowd

LOG_LENGTH: Final = 20_000
BOOKMARK_SECONDS: Final = 20.0
TICK_SECONDS: Final = 0.02
_KINDS: Final = {"nodes": "Node", "pods": "Pod"}


class Collection:
    """The objects of one resource, as bytes, and the lines of their changes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.log: deque[tuple[int, bytes]] = deque(maxlen=LOG_LENGTH)
        self.watchers: set[Watcher] = set()


class Watcher:
    """One open watch: lines to send, and whether there are any."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.news = asyncio.Event()


class Standin:
    """Answers requests; one for each process."""

    def __init__(self, *, delay: float, allocate: float) -> None:
        self._delay = delay
        self._allocate = allocate
        self._version = 1
        self._collections: dict[str, Collection] = {}
        self._rates = {"nodes": 0, "pods": 0}
        self._running: list[str] = []
        self._turns = itertools.count()
        self.requests: Counter[str] = Counter()

    # -- what there is

    def seed(self, *, nodes: int, pods: int, pending: int, signatures: int, policy: str) -> None:
        for i in range(nodes):
            self.put("nodes", crowd.node_name(i), crowd.node(i))
        for i in range(pods):
            key = f"{crowd.NAMESPACE}/pod-{i}"
            self.put("pods", key, crowd.running_pod(i, nodes, pods))
            self._running.append(key)
        for i in range(pending):
            pod = crowd.pending_pod(i, signatures=signatures, policy=policy)
            self.put("pods", f"{crowd.NAMESPACE}/new-{i}", pod)
        for found in self._collections.values():
            found.log.clear()  # nobody watched yet

    def put(self, plural: str, key: str, obj: dict[str, Any]) -> bytes:
        """Store the object's next version and tell whoever watches."""
        found = self._collection(plural)
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        obj.setdefault("kind", _KINDS.get(plural, "Thing"))
        encoded = msgspec.json.encode(obj)
        self._tell(found, b"MODIFIED" if key in found.objects else b"ADDED", encoded)
        found.objects[key] = encoded
        found.versions[key] = self._version
        return encoded

    def delete(self, plural: str, key: str) -> bytes:
        found = self._collection(plural)
        self._version += 1
        obj = msgspec.json.decode(found.objects.pop(key))
        del found.versions[key]
        obj["metadata"]["resourceVersion"] = str(self._version)
        encoded = msgspec.json.encode(obj)
        self._tell(found, b"DELETED", encoded)
        return encoded

    def _tell(self, found: Collection, kind: bytes, encoded: bytes) -> None:
        line = b'{"type":"%s","object":%s}\n' % (kind, encoded)
        found.log.append((self._version, line))
        for watcher in found.watchers:
            watcher.lines.append(line)
            watcher.news.set()

    def _collection(self, plural: str) -> Collection:
        return self._collections.setdefault(plural, Collection())

    # -- requests

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/bench/"):
            return await self._control(request)
        plural, prefix, name, sub = _parse(request.path)
        key = prefix + name
        self.requests[f"{request.method} {resource_of(request.path)}"] += 1
        if request.method == "GET" and not name:
            return await (self._watch if "watch" in request.query else self._list)(request, plural)
        await asyncio.sleep(self._delay)
        match request.method, sub:
            case "POST", "binding":
                return self._bind(key, await request.json())
            case "POST", "":
                return self._create(plural, prefix, await request.json())
            case _ if key not in self._collection(plural).objects:
                return _status(404, "NotFound", f"{plural} {key} not found")
            case "GET", _:
                return _json(self._collection(plural).objects[key])
            case "DELETE", _:
                return _json(self.delete(plural, key))
            case _:
                return await self._write(request, plural, key)

    async def _list(self, request: web.Request, plural: str) -> web.Response:
        found = self._collection(plural)
        limit = int(request.query.get("limit", "0")) or len(found.objects)
        start = int(request.query.get("continue", "0"))
        page = list(itertools.islice(found.objects.values(), start, start + limit))
        more = str(start + limit) if start + limit < len(found.objects) else ""
        meta = b'{"resourceVersion":"%d","continue":"%s"}' % (self._version, more.encode())
        body = b'{"metadata":%s,"items":[%s]}' % (meta, b",".join(page))
        return _json(body)

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        found, watcher = self._collection(plural), Watcher()
        since = int(request.query.get("resourceVersion", "0") or 0)
        seconds = float(request.query.get("timeoutSeconds", "1800"))
        late = itertools.takewhile(lambda entry: entry[0] > since, reversed(found.log))
        watcher.lines = [line for _, line in late][::-1]
        found.watchers.add(watcher)
        response = web.StreamResponse()
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            await response.prepare(request)
            while asyncio.get_running_loop().time() < deadline:
                lines, watcher.lines = watcher.lines, []
                watcher.news.clear()
                await response.write(b"".join(lines) or self._bookmark(plural))
                try:
                    await asyncio.wait_for(watcher.news.wait(), BOOKMARK_SECONDS)
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
        finally:
            found.watchers.discard(watcher)
        return response

    def _bookmark(self, plural: str) -> bytes:
        meta = {"resourceVersion": str(self._version)}
        obj = {"kind": _KINDS.get(plural, "Thing"), "apiVersion": "v1", "metadata": meta}
        return b'{"type":"BOOKMARK","object":%s}\n' % msgspec.json.encode(obj)

    def _create(self, plural: str, prefix: str, obj: dict[str, Any]) -> web.Response:
        metadata = obj["metadata"]
        name = f"{prefix}{metadata['name']}"
        if name in self._collection(plural).objects:
            return _status(409, "AlreadyExists", f"{plural} {name} exists")
        metadata.setdefault("uid", f"uid-{name}")
        if plural == "events":  # nobody reads them here, and there are many
            return _json(msgspec.json.encode(obj), 201)
        return _json(self.put(plural, name, obj), 201)

    async def _write(self, request: web.Request, plural: str, key: str) -> web.Response:
        found = self._collection(plural)
        body = msgspec.json.decode(await request.read())
        current = msgspec.json.decode(found.objects[key])
        if request.method == "PUT":
            fresh = body
        elif isinstance(body, list):
            fresh = apply_json_patch(current, body)
        else:
            if refusal := _stale(body.get("metadata") or {}, current):
                return refusal
            fresh = apply_merge_patch(current, body)
        version = (fresh.get("metadata") or {}).get("resourceVersion")
        if version and version != str(found.versions[key]):
            return _status(409, "Conflict", f"{plural} {key} has changed")
        return _json(self.put(plural, key, fresh))

    def _bind(self, key: str, binding: dict[str, Any]) -> web.Response:
        encoded = self._collection("pods").objects.get(key)
        if encoded is None:
            return _status(404, "NotFound", f"pods {key} not found")
        pod = msgspec.json.decode(encoded)
        if refusal := _stale(binding["metadata"], pod):
            return refusal
        if pod["spec"].get("nodeName"):
            return _status(409, "Conflict", f"pods {key} is already assigned")
        pod["spec"]["nodeName"] = binding["target"]["name"]
        self.put("pods", key, pod)
        asyncio.get_running_loop().call_later(self._allocate, self._run_pod, key)
        return _json(b'{"kind":"Status","status":"Success"}', 201)

    def _run_pod(self, key: str) -> None:
        """What the agent and the kubelet write of a pod that has its devices."""
        encoded = self._collection("pods").objects.get(key)
        if encoded is None:
            return
        pod = msgspec.json.decode(encoded)
        annotations = pod["metadata"].setdefault("annotations", {})
        if codec.BIND_PHASE_KEY in annotations:
            annotations[codec.BIND_PHASE_KEY] = "success"
        pod["status"]["phase"] = "Running"
        self.put("pods", key, pod)

    # -- for the benchmark

    async def _control(self, request: web.Request) -> web.Response:
        match request.path:
            case "/bench/storm":
                self._rates |= await request.json()
                return web.json_response(self._rates)
            case "/bench/counts":
                return web.json_response(self.requests)
            case _:
                return _status(404, "NotFound", "nothing here")

    async def storm(self) -> None:
        """Update nodes and pods at the rates asked for, evenly, for ever."""
        loop = asyncio.get_running_loop()
        owed = {"nodes": 0.0, "pods": 0.0}
        then = loop.time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            for plural, rate in self._rates.items():
                owed[plural] += rate * (now - then)
                while owed[plural] >= 1.0:
                    owed[plural] -= 1.0
                    self._change_node() if plural == "nodes" else self._change_pod()
            then = now

    def _change_node(self) -> None:
        nodes = self._collection("nodes").objects
        turn = next(self._turns)
        name = crowd.node_name(turn % len(nodes))
        node = msgspec.json.decode(nodes[name])
        node["status"]["conditions"][0]["lastHeartbeatTime"] = str(turn)
        self.put("nodes", name, node)

    def _change_pod(self) -> None:
        """Every fifth pod ends and one like it begins; the others report something."""
        turn = next(self._turns)
        key = self._running[turn * 7 % len(self._running)]
        pod = msgspec.json.decode(self._collection("pods").objects[key])
        if turn % 5 == 0:
            self.delete("pods", key)
            pod["metadata"]["uid"] = f"uid-{turn}"
        pod["status"]["conditions"][0]["lastTransitionTime"] = str(turn)
        self.put("pods", key, pod)


def _parse(path: str) -> tuple[str, str, str, str]:
    """Resource, ``namespace/`` or nothing, name or nothing, and sub-resource."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    prefix = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        prefix, rest = f"{rest[1]}/", rest[2:]
    plural, name, sub = (*rest, "", "", "")[:3]
    return plural, prefix, name, sub


def _stale(metadata: dict[str, Any], current: dict[str, Any]) -> web.Response | None:
    """A refusal where what was meant is not what there is."""
    for field in ("uid", "resourceVersion"):
        meant = metadata.get(field)
        if meant and meant != current["metadata"].get(field):
            return _status(409, "Conflict", f"expected {field} {meant}")
    return None


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return _json(msgspec.json.encode(body), code)


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--pods", type=int, default=0)
    parser.add_argument("--pending", type=int, default=0)
    parser.add_argument("--signatures", type=int, default=1)
    parser.add_argument("--policy", default="")
    parser.add_argument("--delay", type=float, default=0.005)
    parser.add_argument("--allocate", type=float, default=0.02)
    options = parser.parse_args(arguments)
    standin = Standin(delay=options.delay, allocate=options.allocate)
    standin.seed(
        nodes=options.nodes,
        pods=options.pods,
        pending=options.pending,
        signatures=options.signatures,
        policy=options.policy,
    )
    gc.freeze()  # pauses of this process would count as the controller's
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", standin.handle)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    storm = asyncio.create_task(standin.storm())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    storm.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
