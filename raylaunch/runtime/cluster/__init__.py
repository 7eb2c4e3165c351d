"""The Ray cluster: connection, placement, the embedded cluster, the code sent to its nodes."""
