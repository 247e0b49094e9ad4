"""An in-memory API server that speaks the Kubernetes REST protocol."""

from hami.sandbox.apiserver.answers import StatusError
from hami.sandbox.apiserver.bodies import LogQuery
from hami.sandbox.apiserver.faults import Distortion, Drop, Fault
from hami.sandbox.apiserver.server import ApiServer, ServerTls
from hami.sandbox.apiserver.store import Store

__all__ = [
    "ApiServer",
    "Distortion",
    "Drop",
    "Fault",
    "LogQuery",
    "ServerTls",
    "StatusError",
    "Store",
]
