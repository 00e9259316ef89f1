"""A Kubernetes control plane on loopback, with nodes that a played kubelet stands in for."""
