"""The scheduling engine: pure functions on plain data. No await, clock, socket or logger."""
