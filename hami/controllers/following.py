"""What a running controller does when its settings change.

Most parts look at the settings at each use. Here stands what must be told, and which objects mean
something else from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hami import logs
from hami.config import Settings
from hami.controllers.handlers import NodeHandler
from hami.controllers.pending import PendingPods
from hami.controllers.twins import Twins
from hami.core import selectors
from hami.core.device import DevicePolicy, NodePolicy
from hami.core.objects import Node
from hami.core.request import Defaults
from hami.core.selectors import Selector
from hami.errors import CodecError, ConfigError
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


def node_selector(now: Settings) -> Selector:
    """Which nodes get pods with devices; judged when the settings were loaded.

    Raises:
        ConfigError: The setting is no label selector.
    """
    try:
        return selectors.parse(now.controller.node_label_selector)
    except CodecError as error:
        raise ConfigError(f"controller.node_label_selector: {error}") from error


def tell_parts(
    client: KubeClient, twins: Twins, pending: PendingPods, before: Settings, now: Settings
) -> None:
    """Tell the parts that keep what they were given."""
    if now.log != before.log:
        logs.configure(now.log)
    client.adopt(now.kube)
    twins.patience_seconds = now.controller.allocate_timeout_seconds
    pending.scheduler_name = now.controller.scheduler_name


def reselect(nodes: Informer[Node], handler: NodeHandler, before: Settings, now: Settings) -> None:
    """Offer other nodes where the selector is another one."""
    if now.controller.node_label_selector != before.controller.node_label_selector:
        handler.select(node_selector(now), nodes.list())


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
