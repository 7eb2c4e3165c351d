"""The gateway: its keys, and what its nodes have for it."""
