"""What runs where. Pure: no ray, sockets, clock or os.environ."""
