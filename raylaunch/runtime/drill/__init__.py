"""Injects faults into a running deployment under load and measures the recovery."""
