"""The preload library that enforces limits inside containers, and its one shared header."""
