"""Commands that ask a running controller, from wherever its user sits."""
