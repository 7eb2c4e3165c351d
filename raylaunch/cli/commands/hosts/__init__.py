"""The verbs on hosts and clusters."""
