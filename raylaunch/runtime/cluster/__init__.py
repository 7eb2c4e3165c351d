"""The Ray cluster: connection, placement, the embedded cluster, the code that travels to its nodes."""
