"""Checks of how a deployment is seen from outside."""
