"""The verbs: one module per verb, named after it. Each has `add_command`, which the app calls."""
