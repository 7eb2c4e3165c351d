"""The weights of a recipe on all nodes: found and downloaded."""
