"""An in-memory API server that speaks the Kubernetes REST protocol."""

from hami.sandbox.apiserver.answers import StatusError
from hami.sandbox.apiserver.server import ApiServer
from hami.sandbox.apiserver.store import Store

__all__ = ["ApiServer", "StatusError", "Store"]
