"""The verbs on recipes; they need no cluster."""
