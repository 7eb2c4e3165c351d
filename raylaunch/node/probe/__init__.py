"""What this machine has: NPUs, network, software, kernel settings."""
