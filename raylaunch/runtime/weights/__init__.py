"""Inspects the weights of a recipe on all nodes and downloads them."""
