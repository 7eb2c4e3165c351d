"""The controller's side of metrics and hooks. Nothing here may disturb the deployment."""
