"""The data path: TUN queues, UDP sockets, shared memory and the workers that move packets."""
