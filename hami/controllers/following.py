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


def tell_parts(client: KubeClient, twins: Twins, before: Settings, now: Settings) -> None:
    """Tell the parts that keep what they were given."""
    if now.log != before.log:
        logs.configure(now.log)
    client.adopt(now.kube)
    twins.patience_seconds = now.controller.allocate_timeout_seconds


def reread(
    informer: Informer[T], on_set: Callable[[T, T | None], None], before: Settings, now: Settings
) -> None:
    """Look at every object again where the settings say what objects mean."""
    selector = now.controller.node_label_selector
    if vendor_table(now) != vendor_table(before) or (
        selector != before.controller.node_label_selector
    ):
        for obj in informer.list():
            on_set(obj, obj)
