"""A stand-in for kube-scheduler that follows its extender protocol to the letter.

Input: the API server's pods and nodes, and a real ``KubeSchedulerConfiguration``. It must not know
what extenders decide about: what they manage is a resource name here.
"""

from hami.sandbox.scheduler.config import SchedulerConfig, load_config
from hami.sandbox.scheduler.scheduler import Scheduler

__all__ = ["Scheduler", "SchedulerConfig", "load_config"]
