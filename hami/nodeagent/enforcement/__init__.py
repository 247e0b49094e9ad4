"""How the limits of containers are enforced: several backends behind one contract."""

from hami.nodeagent.enforcement.choice import BACKENDS, choose, is_whole
from hami.nodeagent.enforcement.contract import Backend, Guarantee

__all__ = ["BACKENDS", "Backend", "Guarantee", "choose", "is_whole"]
