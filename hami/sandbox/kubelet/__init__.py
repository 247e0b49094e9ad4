"""A simulated node's kubelet: the device-plugin protocol, pods' lives, the pod-resources API.

Input: the API server's pods of this node, plugins on unix sockets. It must not know what devices
are for: a GPU is an id of an extended resource here, as it is for the real kubelet.
"""

from hami.sandbox.kubelet.kubelet import Kubelet, KubeletMetrics
from hami.sandbox.kubelet.settings import KubeletSettings

__all__ = ["Kubelet", "KubeletMetrics", "KubeletSettings"]
