"""Rules for what is not Ascend's: vLLM's configuration, its start, processes of Ray."""
