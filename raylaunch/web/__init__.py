"""The page of a running deployment: what it reads, and the server on loopback."""
