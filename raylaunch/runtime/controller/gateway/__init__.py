"""The controller's side of the gateway: who is behind it, and that it runs."""
