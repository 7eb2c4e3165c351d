"""What is wanted. Pure: no ray, sockets, clock or os.environ."""
