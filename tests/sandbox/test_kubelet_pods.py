"""Pods live on a simulated node as they do on a real one."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from hami.kube.resources import LEASES, NODES, PODS
from tests.support.kube import until
from tests.support.node import (
    NODE,
    another_kubelet,
    container,
    container_state,
    eventually,
    make_pod,
    open_node,
)
from tests.support.processes import ended


def condition(pod: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = pod["status"]["conditions"]
    return next(each for each in conditions if each["type"] == kind)


async def test_a_node_registers_itself_and_keeps_its_lease() -> None:
    async with open_node(labels={"gpu": "on"}, cpus=8) as bench:
        node = bench.find(NODES, NODE)
        assert node is not None
        assert node["metadata"]["labels"]["kubernetes.io/hostname"] == NODE
        assert node["metadata"]["labels"]["gpu"] == "on"
        assert node["status"]["allocatable"]["cpu"] == "8"
        assert condition(node, "Ready")["status"] == "True"
        await eventually(
            lambda: bench.server.store.list(LEASES.plural), lambda: "no lease in the namespace"
        )


async def test_a_node_that_was_deleted_comes_back_with_its_kubelet() -> None:
    async with open_node() as bench:
        first = bench.find(NODES, NODE)
        await bench.client.delete(NODES.path("", NODE))
        await bench.kubelet.restart()
        again = await eventually(
            lambda: bench.find(NODES, NODE), lambda: bench.server.store.list("nodes")
        )
        assert first is not None
        assert again["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_pod_that_ends_well_succeeds() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo hello")))
        pod = await bench.phase("a", "Succeeded")
        terminated = container_state(pod)["terminated"]
        assert (terminated["exitCode"], terminated["reason"]) == (0, "Completed")
        assert condition(pod, "Ready")["reason"] == "PodCompleted"
        assert await bench.log("a") == "hello\n"


async def test_a_running_pod_is_ready_and_tells_its_address() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a"))
        pod = await bench.phase("a", "Running")
        assert condition(pod, "Ready")["status"] == "True"
        assert condition(pod, "PodScheduled")["status"] == "True"
        assert pod["status"]["podIP"] == "127.0.0.1"
        assert pod["status"]["containerStatuses"][0]["ready"] is True
        assert pod["status"]["startTime"]


async def test_a_pod_that_must_not_restart_fails_with_its_exit_code() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="exit 3")))
        pod = await bench.phase("a", "Failed")
        terminated = container_state(pod)["terminated"]
        assert (terminated["exitCode"], terminated["reason"]) == (3, "Error")


async def test_a_container_that_fails_is_restarted_after_a_back_off() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="exit 1"), restart="Always"))
        pod = await bench.pod(
            "a", lambda pod: container_state(pod).get("waiting", {}).get("reason") is not None
            and pod["status"]["containerStatuses"][0]["restartCount"] >= 1
        )  # fmt: skip
        status = pod["status"]["containerStatuses"][0]
        assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert status["lastState"]["terminated"]["exitCode"] == 1
        assert pod["status"]["phase"] == "Running"


async def test_on_failure_restarts_until_the_container_succeeds() -> None:
    async with open_node() as bench:
        run = 'test -e "$DIR/done" && exit 0; touch "$DIR/done"; exit 1'
        volume = {"name": "work", "emptyDir": {}}
        mount = {"name": "work", "mountPath": "/work-of-the-pod"}
        env = [{"name": "DIR", "value": "/work-of-the-pod"}]
        await bench.create(
            make_pod(
                "a",
                container(run=run, env=env, volumeMounts=[mount]),
                restart="OnFailure",
                volumes=[volume],
            )
        )
        pod = await bench.phase("a", "Succeeded")
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 1


async def test_init_containers_run_one_after_the_other_before_the_rest() -> None:
    async with open_node() as bench:
        volume = {"name": "work", "emptyDir": {}}
        mounts = [{"name": "work", "mountPath": "/work-of-the-pod"}]
        write = "echo {0} >> /work-of-the-pod/order"
        await bench.create(
            make_pod(
                "a",
                container(
                    run=write.format("main") + "; cat /work-of-the-pod/order", volumeMounts=mounts
                ),
                init=[
                    container("first", run=write.format("first"), volumeMounts=mounts),
                    container("second", run=write.format("second"), volumeMounts=mounts),
                ],
                volumes=[volume],
            )
        )
        pod = await bench.phase("a", "Succeeded")
        assert await bench.log("a") == "first\nsecond\nmain\n"
        assert container_state(pod, 1, init=True)["terminated"]["reason"] == "Completed"


async def test_a_pod_waits_in_its_init_container() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", init=[container("init")]))
        pod = await bench.pod("a", lambda pod: "running" in container_state(pod, init=True))
        assert pod["status"]["phase"] == "Pending"
        assert container_state(pod)["waiting"]["reason"] == "PodInitializing"
        assert condition(pod, "Initialized")["reason"] == "ContainersNotInitialized"


async def test_a_failed_init_container_fails_a_pod_that_must_not_restart() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", init=[container("init", run="exit 5")]))
        pod = await bench.phase("a", "Failed")
        assert container_state(pod, init=True)["terminated"]["exitCode"] == 5
        assert container_state(pod)["waiting"]["reason"] == "PodInitializing"


async def test_a_sidecar_runs_beside_the_containers_and_ends_after_them() -> None:
    async with open_node() as bench:
        run = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done"
        sidecar = container("sidecar", run=run, restartPolicy="Always")
        await bench.create(make_pod("a", container(run="echo done"), init=[sidecar]))
        pod = await bench.phase("a", "Succeeded")
        assert container_state(pod, init=True)["terminated"]["exitCode"] == 0
        assert await bench.log("a", "sidecar") == "bye\n"


async def test_a_deleted_pod_is_asked_to_end_and_then_removed() -> None:
    async with open_node() as bench:
        run = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done"
        await bench.create(make_pod("a", container(run=run), grace=30))
        await bench.logged("a", "up")
        log = bench.kubelet.read_log("default", "a", "main", lines=None, follow=True)
        await bench.delete("a")
        followed = b"".join([chunk async for chunk in log])
        assert followed == b"up\nasked\n"
        await bench.gone("a")


async def test_a_container_that_ignores_the_request_is_killed_after_the_grace() -> None:
    async with open_node() as bench:
        run = "trap '' TERM; echo $$$$; while :; do sleep 0.05; done"
        await bench.create(make_pod("a", container(run=run), grace=0))
        pid = int(await bench.logged("a", "\n"))
        await bench.delete("a", grace=1)
        await bench.gone("a")
        assert await ended(pid)


async def test_a_pod_removed_by_force_leaves_no_process() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo $$$$; exec sleep 1000"), grace=30))
        pid = int(await bench.logged("a", "\n"))
        await bench.delete("a", grace=0)
        await bench.gone("a")
        await until(partial(ended, pid))


async def test_no_process_outlives_the_node_wherever_it_went() -> None:
    async with open_node() as bench:
        run = "setsid sleep 1000 & echo $!; (setsid sleep 1000 & echo $!); echo up; wait"
        await bench.create(make_pod("a", container(run=run)))
        pids = (await bench.logged("a", "up")).split()[:2]
    for pid in map(int, pids):
        assert await ended(pid)


async def test_a_pod_without_a_command_says_so() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", {"name": "main", "image": "nginx"}))
        pod = await bench.pod("a", lambda pod: "message" in container_state(pod).get("waiting", {}))
        waiting = container_state(pod)["waiting"]
        assert waiting["reason"] == "CreateContainerError"
        assert "no command specified" in waiting["message"]
        assert pod["status"]["phase"] == "Pending"
        await bench.delete("a")
        await bench.gone("a")


async def test_a_command_that_does_not_exist_fails_the_pod() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", {**container(), "command": ["/no/such/program"]}))
        pod = await bench.phase("a", "Failed")
        terminated = container_state(pod)["terminated"]
        assert (terminated["exitCode"], terminated["reason"]) == (128, "StartError")
        assert "/no/such/program" in terminated["message"]


async def test_a_volume_of_an_unknown_kind_holds_the_container_back() -> None:
    async with open_node() as bench:
        await bench.create(
            make_pod(
                "a",
                container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
                volumes=[{"name": "v", "configMap": {"name": "c"}}],
            )
        )
        pod = await bench.pod("a", lambda pod: "message" in container_state(pod).get("waiting", {}))
        waiting = container_state(pod)["waiting"]
        assert waiting["reason"] == "CreateContainerConfigError"
        assert "emptyDir and hostPath" in waiting["message"]


async def test_a_container_sees_its_variables_and_nothing_of_the_sandbox() -> None:
    async with open_node(environment={"FROM_NODE": "yes"}) as bench:
        env = [
            {"name": "A", "value": "one"},
            {"name": "B", "value": "$(A)-two $(UNKNOWN) $$(A)"},
            {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "FROM_NODE", "value": "no"},
        ]
        await bench.create(make_pod("a", container(run="/usr/bin/env", env=env)))
        await bench.phase("a", "Succeeded")
        lines = (await bench.log("a")).splitlines()
        seen = dict(line.split("=", 1) for line in lines)
        assert seen["B"] == "one-two $(UNKNOWN) $(A)"
        assert seen["WHERE"] == NODE
        assert seen["FROM_NODE"] == "yes"
        assert seen["HOSTNAME"] == "a"
        of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
        given = {"A", "B", "WHERE", "FROM_NODE", "HOSTNAME", "HOME", "PATH"}
        assert seen.keys() - of_the_shell == given


async def test_a_pod_that_asks_for_more_than_the_node_has_is_refused() -> None:
    async with open_node(cpus=2) as bench:
        greedy = container()
        greedy["resources"] = {"requests": {"cpu": "1500m"}, "limits": {"cpu": "1500m"}}
        await bench.create(make_pod("a", greedy))
        await bench.phase("a", "Running")
        await bench.create(make_pod("b", greedy))
        pod = await bench.phase("b", "Failed")
        assert pod["status"]["reason"] == "OutOfcpu"
        assert "requested: 1500, used: 1500, capacity: 2000" in pod["status"]["message"]


async def test_a_pod_whose_node_selector_does_not_match_is_refused() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", nodeSelector={"gpu": "on"}))
        pod = await bench.phase("a", "Failed")
        assert pod["status"]["reason"] == "NodeAffinity"


async def test_events_tell_what_happened() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="exit 1"), restart="Always"))

        def reasons() -> set[str]:
            return {event["reason"] for event in bench.server.store.list("events")}

        await eventually(lambda: reasons() >= {"Started", "BackOff"}, reasons)


async def test_the_start_of_a_pod_costs_few_writes() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a"))
        await bench.phase("a", "Running")
        assert bench.server.requests["patch", "pods/status"] <= 4


async def test_a_node_takes_as_many_pods_as_it_has_room_for() -> None:
    async with open_node(pods=2) as bench:
        for name in "abcd":
            await bench.create(make_pod(name))

        def phases() -> list[str]:
            pods = bench.server.store.list("pods")
            return sorted(pod.get("status", {}).get("phase", "") for pod in pods)

        wanted = ["Failed", "Failed", "Running", "Running"]
        await eventually(lambda: phases() == wanted, phases)


async def test_a_new_kubelet_runs_the_pods_that_it_finds() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo up; exec sleep 1000")))
        await bench.logged("a", "up")
        async with another_kubelet(bench) as again:
            await again.logged("a", "up\nup\n")


async def test_a_pod_leaves_nothing_on_its_node() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo up; exec sleep 1000")))
        await bench.logged("a", "up")
        pods = anyio.Path(bench.kubelet.settings.root / "pods")
        assert [entry async for entry in pods.iterdir()]
        await bench.delete("a")
        await bench.gone("a")

        async def empty() -> bool:
            return not [entry async for entry in pods.iterdir()]

        await until(empty)


async def test_a_pod_that_another_declared_failed_ends_and_keeps_the_reason() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(run="echo $$$$; exec sleep 1000")))
        pid = int(await bench.logged("a", "\n"))
        await bench.pod("a", lambda pod: pod["status"].get("phase") == "Running")

        status = {"phase": "Failed", "reason": "Misplaced", "message": "it runs elsewhere"}
        await bench.client.patch(
            PODS.path("default", "a", subresource="status"), {"status": status}
        )

        pod = await bench.pod("a", lambda pod: "terminated" in container_state(pod))
        assert await ended(pid)
        assert {key: pod["status"][key] for key in status} == status
