"""What changes the groups of a running deployment: commands, and a fallback for a lost node."""
