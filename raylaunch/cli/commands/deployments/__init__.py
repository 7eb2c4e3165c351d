"""The verbs on deployments."""
