"""The controller's side of metrics, hooks and traces. Nothing here may disturb the deployment."""
