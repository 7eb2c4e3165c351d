"""Runs a benchmark on the cluster and stores its result."""
