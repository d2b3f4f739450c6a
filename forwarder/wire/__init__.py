"""Protocol headers as bytes: layouts, parsing, building.  No sockets; of ours only the compiler."""
