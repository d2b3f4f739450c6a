"""Protocol headers as bytes: layouts, parsing and building.  No sockets, nothing of ours imported."""
