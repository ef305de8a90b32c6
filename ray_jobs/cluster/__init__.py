"""The Ray cluster: connected to, checked node by node, and given work."""
