"""The whole system on one machine: API server, scheduler, kubelets and GPUs that stand in."""
