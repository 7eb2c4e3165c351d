"""Benchmark scenarios and results. Pure: scenario to command line, result to tables and charts."""
