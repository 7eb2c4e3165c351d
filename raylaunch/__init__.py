"""raylaunch: starts data-parallel vLLM on Ascend NPUs over a Ray cluster, and keeps it up."""
