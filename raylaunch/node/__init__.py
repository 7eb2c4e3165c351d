"""One machine: probing it, owning a process tree on it, its logs. No ray."""
