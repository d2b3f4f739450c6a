"""Topologies in network namespaces, and the measurements made on them."""
