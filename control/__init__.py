"""The control plane: etcd in, forwarding table out."""
