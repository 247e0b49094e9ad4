"""Commands that ask a running controller, and those of one host without Kubernetes."""
