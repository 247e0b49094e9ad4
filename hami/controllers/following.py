"""What a running controller does when its settings change.

Most parts look at the settings at each use. Here stands what must be told, and which objects mean
something else from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hami import logs
from hami.config import Settings
from hami.controllers.twins import Twins
from hami.core.device import DevicePolicy, NodePolicy
from hami.core.request import Defaults
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.resources import HasMetadata
from hami.site import vendor_table

T = TypeVar("T", bound=HasMetadata)


def defaults_of(now: Settings) -> Defaults:
    """What holds for pods that say nothing."""
    own = now.controller
    return Defaults(
        node_policy=NodePolicy(own.node_policy), device_policy=DevicePolicy.parse(own.device_policy)
    )


def meaning_of_pods(now: Settings) -> object:
    """While this is equal, a pod asks for the same, of the same scheduler."""
    return vendor_table(now), defaults_of(now), now.controller.scheduler_name


def meaning_of_nodes(now: Settings) -> object:
    """While this is equal, a node has the same devices, and gets pods or does not."""
    return vendor_table(now), now.controller.node_label_selector


def tell_parts(client: KubeClient, twins: Twins, before: Settings, now: Settings) -> None:
    """Tell the parts that keep what they were given."""
    if now.log != before.log:
        logs.configure(now.log)
    client.adopt(now.kube)
    twins.patience_seconds = now.controller.allocate_timeout_seconds


def reread(
    informer: Informer[T],
    on_set: Callable[[T, T | None], None],
    meaning: Callable[[Settings], object],
    before: Settings,
    now: Settings,
) -> None:
    """Look at every object again where it means another thing by the settings of now."""
    if meaning(now) != meaning(before):
        for obj in informer.list():
            on_set(obj, None)
