"""Loads for a deployment and what they gave. Pure: scenario to command line, result to tables and pictures."""
