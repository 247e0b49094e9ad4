"""hami: share accelerators between Kubernetes pods, with enforced limits."""

__version__ = "0.1.0"
