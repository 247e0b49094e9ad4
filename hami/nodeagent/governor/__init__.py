"""The governor: the closed loop from what the driver measures to what each container is granted.

`loop` runs it; `docs/governor.md` says how.
"""
