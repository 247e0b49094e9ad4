"""Runs containers as processes of this machine, with the environment and mounts they were given.

What it must not know: pods, devices, Kubernetes. Its input is a ``ContainerSpec``; the image is no
part of it, the sandbox has none.
"""

from hami.sandbox.runtime.container import Container, Exit
from hami.sandbox.runtime.runtime import HELPER, Runtime
from hami.sandbox.runtime.spec import ContainerSpec, Isolation, Mount, StartError

__all__ = [
    "HELPER",
    "Container",
    "ContainerSpec",
    "Exit",
    "Isolation",
    "Mount",
    "Runtime",
    "StartError",
]
