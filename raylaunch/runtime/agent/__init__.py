"""The Ray actor on each node that owns one server, and the group of them."""
