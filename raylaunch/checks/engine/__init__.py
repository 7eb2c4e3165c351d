"""What a node's own vLLM made of the servers: refusals, warnings, differences in a group."""
