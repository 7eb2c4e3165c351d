"""Which server failed first and why. Pure: logs and exit statuses in, a diagnosis out."""
