"""Injecting faults into a running deployment under load."""
