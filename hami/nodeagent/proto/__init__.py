"""Messages of the kubelet's device-plugin and pod-resources protocols."""
