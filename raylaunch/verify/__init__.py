"""Proof that a service answers as a client sees it."""
