"""The forwarding table in shared memory: its layout, its one writer, its lock-free readers."""
